from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
import yaml
from averaging_nets import Net, fit
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives import cli
from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import AverageWeights
from lightning_objectives.cli.typed import typed
from lightning_objectives.discovery import methods

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:LightningCLI's args")


def files(folder):
    for step, value in ((5, 1.0), (10, 2.0), (15, 4.0)):
        torch.save({"w": torch.tensor([value]), "n": torch.tensor(step)}, folder / f"net-step={step}.pt")
    return [str(path) for path in sorted(folder.glob("*.pt"))]


def test_merge(tmp_path, capsys):
    """Square, n = 3: 1/9, 3/9, 5/9."""
    cli.main(["merge", *files(tmp_path), "--shape", "square", "-o", "out.pt"])
    merged = torch.load("out.pt")
    assert merged["w"].item() == pytest.approx((1 + 6 + 20) / 9)
    assert merged["n"] == 15
    printed = capsys.readouterr()
    lines = [line.split("net-")[1] for line in printed.out.splitlines() if "net-" in line]
    assert [" ".join(line.split()) for line in lines] == [
        "step=5.pt step 5 coefficient 0.1111",
        "step=10.pt step 10 coefficient 0.3333",
        "step=15.pt step 15 coefficient 0.5556",
    ]
    assert "merged: 1 tensor, 4 B" in printed.out
    assert "copied from the newest file and not merged (whole numbers, or no tensors): ['n']" in printed.out
    assert printed.out.endswith("wrote out.pt\n")
    assert "100%" in printed.err, "a bar"


def test_the_settings_and_the_order_are_those_of_the_words(tmp_path):
    cli.main(["merge", *reversed(files(tmp_path)), "--shape=ema", "--ema-weight=0.5", "--order=given", "-o", "out.pt"])
    assert torch.load("out.pt")["w"].item() == pytest.approx(0.25 * 1 + 0.25 * 4 + 0.5 * 2)  # by name: 5, 15, 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "sqrt"], "shape='sqrt' must be"),
        (["--method", "None"], "invalid choice: 'None'"),
        (["--ema-weight", "x"], "invalid float value"),
        (["none.pt"], "none.pt does not exist"),
    ],
)
def test_wrong_words(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["merge", *files(tmp_path), *words, "-o", "out.pt"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def network(folder, name, *values):
    path = folder / f"{name}.pt"
    torch.save({"w": torch.tensor(values)}, path)
    return str(path)


def test_a_merge_with_a_base(tmp_path, capsys):
    """Half of four changes are kept: 4 and 3 of the first, -8 and 2 of the second."""
    base = network(tmp_path, "base", 1.0, 1.0, 1.0, 1.0)
    files = [network(tmp_path, "a", 5.0, 4.0, 2.0, 1.0), network(tmp_path, "b", 1.5, -7.0, 1.0, 3.0)]
    cli.main(["merge", *files, "--method=TIES", "--base", base, "--density", "0.5", "--scale=0.5", "-o", "out.pt"])
    assert torch.load("out.pt")["w"].tolist() == [3.0, -3.0, 1.0, 2.0]
    assert "coefficient" not in capsys.readouterr().out


def test_a_merge_with_importance_and_settings_of_every_type(tmp_path):
    files = [network(tmp_path, "a", 0.0), network(tmp_path, "b", 1.0)]
    importance = [network(tmp_path, "fa", 1.0), network(tmp_path, "fb", 2.0)]
    words = ["merge", *files, "--method=FisherMerging", "--force", "-o", "out.pt"]
    words += [word for path in importance for word in ("--importance", path)]
    for more, expected in [
        ([], 0.5),
        (["--normalize", "false"], 2 / 3),
        (["--normalize=False", "--shares", "[1, 3.5]"], 7 / 8),
        (["--shares", "1,3"], 3 / 4),
        (["--shares=None", "--floor=1"], 0.5),
    ]:
        cli.main([*words, *more])
        assert torch.load("out.pt")["w"].item() == pytest.approx(expected), more


def test_a_search_by_a_function_of_the_current_folder(tmp_path):
    (tmp_path / "score_of_this_test.py").write_text("def score(state):\n    return -abs(state['w'].item() - 2)\n")
    files = [network(tmp_path, "a", 1.0), network(tmp_path, "b", 3.5), network(tmp_path, "c", 9.0)]
    words = ["merge", *files, "--method=GreedySoup", "--evaluate=score_of_this_test.score", "--strict=true"]
    cli.main([*words, "-o", "out.pt"])
    assert torch.load("out.pt")["w"].item() == 2.25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method=TIES"], "TIES(density=0.2, scale=1.0) cannot merge without base"),
        (["--method=TIES", "--density=x"], "argument --density: invalid float value: 'x'"),
        (["--method=TIES", "--density=None"], "argument --density: invalid float value: 'None'"),
        (["--method=TIES", "--shape=linear"], "TIES has no setting shape"),
        (["--method=TIES", "--share=0.5"], "TIES has no setting share."),
        (["--method=GreedySoup", "--strict=maybe"], "argument --strict: invalid bool value: 'maybe'"),
        (["--method=GreedySoup", "--evaluate=math.nothing"], "'math.nothing' cannot be imported"),
        (["--method=GreedySoup", "--evaluate=nothing"], "'nothing' cannot be imported"),
        (["--method=GreedySoup", "--evaluate=math.pi"], "'math.pi' is a float, not a function"),
        (["--method=FisherMerging", "--shares=1,x"], "argument --shares: invalid float value: 'x'"),
        (["--base=net-step=5.pt"], "does not use base"),
    ],
)
def test_wrong_words_of_other_methods(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["merge", *files(tmp_path), *words, "-o", "out.pt"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def test_the_help_tells_types_and_owners(capsys):
    with pytest.raises(SystemExit):
        cli.main(["merge", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--density DENSITY float for TIES (default: 0.2)" in text
    assert "list of float or None for FisherMerging (default: None)" in text
    merges = {cls.__name__: cls for _, cls in methods("merging")}
    assert f"{', '.join(merges)} (default: WSM)" in text
    askers = [name for name, cls in merges.items() if "base" in cls.asks]
    assert "TIES" in askers
    assert f"what the files were trained from ({', '.join(askers)})" in text


@pytest.mark.parametrize(
    ("text", "annotation", "expected"),
    [
        ("null", float | None, None),
        ("none", str, "none"),
        ("True", bool, True),
        ("3", int | float, 3),
        ("3", float, 3.0),
        ("1e-3", float, 1e-3),
        ("[]", list[int], []),
        ("(1, 2)", Sequence[int], [1, 2]),
        ("[true, False]", list[bool], [True, False]),
        ("cosine", Literal["cosine"] | Callable[[float], float], "cosine"),
    ],
)
def test_a_word_is_read_as_its_type(text, annotation, expected):
    found = typed(text, annotation)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("text", "annotation"), [("1.5", int), ("yes", bool), ("", float), ("f", Callable[[], int])])
def test_a_word_of_another_type_is_refused(text, annotation):
    with pytest.raises(ValueError, match=r"invalid .*value"):
        typed(text, annotation)


def test_export(tmp_path, capsys):
    reference, _ = fit()
    fit(AverageWeights(EMA(decay=0.5)), ModelCheckpoint(tmp_path, filename="x"))
    cli.main(["export", "x.ckpt", "--weights", "raw", "-o", "raw.ckpt"])
    net = Net.load_from_checkpoint("raw.ckpt", map_location="cpu")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in reference.state_dict().items())
    with pytest.raises(SystemExit):
        cli.main(["export", "raw.ckpt", "--weights", "raw", "-o", "again.ckpt"])
    assert "holds no average" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_all_of_it_from_yaml(tmp_path):
    """A schedule by class_path with the optimizer from the command line, and the callback in both forms."""
    merging = {"last": 2, "every_n_steps": 1, "directory": str(tmp_path / "one")}
    method = {"class_path": "lightning_objectives.merging.WSM", "init_args": {"shape": "math.cos"}}
    ready = {"shape": "cosine", **merging}
    general = {"method": method, **merging, "directory": str(tmp_path / "two")}
    config = {
        "seed_everything": 0,
        "model": {"class_path": "test_command_net.Bare"},
        "data": {"class_path": "lightning_objectives.data.DigitsDataModule", "init_args": {"batch_size": 256}},
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.8}},
        "lr_scheduler": {
            "class_path": "lightning_objectives.schedules.WSDSchedule",
            "init_args": {"warmup_steps": 2, "stable_steps": 4, "decay_steps": 2},
        },
        "trainer": {
            "max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 0, "accelerator": "cpu", "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
            "callbacks": [
                {"class_path": "lightning_objectives.callbacks.WSMCallback", "init_args": ready},
                {"class_path": "lightning_objectives.callbacks.MergeCheckpoints", "init_args": general},
            ],
        },
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "test_command_net.py").write_text(
        "import lightning as L, torch\n"
        "class Bare(L.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(64, 10)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        rate = self.optimizers().param_groups[0]['lr']\n"
        "        assert abs(rate - [0.4, 0.8][self.current_epoch]) < 1e-9, rate\n"
        "        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])\n"
    )
    cli.main(["fit", "--config", "config.yaml"])
    one, two = (torch.load(tmp_path / name / "merged.ckpt")["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys() == {"layer.weight", "layer.bias"}
    # cosine: s(1/2) = 1/2; a function: cos(1/2)
    assert not torch.equal(one["layer.weight"], two["layer.weight"])
