"""``init`` copies examples that run where they lie."""

import re
import sys
from pathlib import Path

import pytest
import torch

from lightning_objectives import cli
from lightning_objectives.cli import examples

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:AverageWeights of .* never began"),
]
BRIEF = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"]
BRIEF += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    yield tmp_path
    sys.modules.pop("model", None)


def test_the_copies_run(folder, monkeypatch, capsys):
    cli.main(["init", "mine"])
    out = capsys.readouterr().out
    copied = {file.name for file in (folder / "mine").iterdir()}
    assert {"model.py", "plug_in.py", "baseline.yaml", "ema.yaml", "all.yaml"} < copied
    assert f"wrote {len(copied)} files to mine" in out
    monkeypatch.chdir("mine")
    commands = re.findall(r"lightning-objectives (.*)", out)
    assert len(commands) == 3
    for command in commands:
        if not command.startswith("inspect"):  # tests/inspection has it
            cli.main([*command.split(), *(BRIEF if command.startswith("fit") else [])])
    assert Path(sys.modules["model"].__file__) == folder / "mine" / "model.py", "the copy was trained"
    cli.main(["fit", "-c", "baseline.yaml", "-c", "teacher.yaml", *BRIEF])
    assert "state_dict" in torch.load("runs/digits/teacher.ckpt", weights_only=True)
    cli.main(["fit", "-c", "baseline.yaml", "-c", "dual_head_kd.yaml", *BRIEF])


def test_no_path_of_the_repository_is_left():
    copies = examples._copies(examples._source())
    assert not [name for name, text in copies.items() if "examples" in text or "repository" in text]
    assert "lightning-objectives fit -c baseline.yaml" in copies["baseline.yaml"]


def test_nothing_is_replaced(folder, capsys):
    (folder / "model.py").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        cli.main(["init", "."])
    assert stop.value.code == 2
    assert ". has model.py already, and init replaces no file." in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["model.py"], "none of the others is written"
    assert (folder / "model.py").read_text() == "mine"


def test_a_folder_that_cannot_be_made(folder, capsys):
    (folder / "file").touch()
    with pytest.raises(SystemExit) as stop:
        cli.main(["init", "file/mine"])
    assert stop.value.code == 2
    assert "cannot write to file/mine: " in capsys.readouterr().err


def test_a_wheel_packs_what_init_looks_for(folder, monkeypatch):
    """The build puts each folder where an installed package looks for it."""
    project = (ROOT / "pyproject.toml").read_text()
    wheel, sdist = project.split("[tool.hatch.build.targets.wheel.force-include]")[1].split("[tool.hatch.build.", 1)
    packed = dict(re.findall(r'^"(.*)" = "(.*)"$', wheel, re.MULTILINE))
    assert packed == {f"examples/{name}": f"lightning_objectives/_examples/{name}" for name in examples.FOLDERS}
    assert all(f'  "{source}",\n' in sdist for source in packed), "a wheel may be built from the source distribution"
    installed = folder / "site" / "lightning_objectives"
    (installed / "_examples").mkdir(parents=True)
    for source, target in packed.items():
        (folder / "site" / target).symlink_to(ROOT / source)
    monkeypatch.setattr(examples, "files", lambda _: installed)
    cli.main(["init", "mine"])
    assert (folder / "mine" / "model.py").read_text() == (ROOT / "examples/existing_project/model.py").read_text()
