"""A full disk, a kill: under the final name there is the old file or the new one, whole."""

import json
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import processes
import pytest
import torch
from corruptions import EXAMPLES, contents, drawn
from helpers import Net, fit, loader
from hypothesis import strategies as st
from kills import WRITERS, read, sources
from safetensors.torch import save_file

from lightning_objectives._files import writing
from lightning_objectives._files.writing import replaced, write_torch
from lightning_objectives.callbacks import MergeCheckpoints
from lightning_objectives.cli import main
from lightning_objectives.merging import WSM, merge_checkpoints

KILLS = 8


@contextmanager
def room(size):
    """No file of this process can grow beyond ``size`` bytes: writes end as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("before", [False, True], ids=["new", "over another"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(tmp_path, name, before):
    sources(tmp_path)
    mine = tmp_path / "mine"
    (mine / "empty").mkdir(parents=True)
    path, write = mine / name, WRITERS[name]
    write(mine, 1, path)
    size = path.stat().st_size
    if before:
        write(mine, 0, path)
    else:
        path.unlink()
    held = contents(tmp_path)

    def run(draw):
        with room(draw(st.integers(0, size - 1))), pytest.raises(OSError, match="could not be written") as caught:
            write(mine, 1, path)
        assert str(path) in str(caught.value)
        assert "make room" in str(caught.value)
        assert contents(tmp_path) == held

    drawn(EXAMPLES // 3, run)
    write(mine, 1, path)  # with room again
    assert read(path) == 1


def test_a_full_disk_ends_the_commands_with_a_sentence(tmp_path, capsys):
    sources(tmp_path)
    held = contents(tmp_path)
    files = [str(tmp_path / f"0-{step}.ckpt") for step in (1, 2)]
    for words in (["merge", *files], ["export", files[0], "--weights", "raw"]):
        with room(1000), pytest.raises(SystemExit) as ended:
            main([*words, "-o", str(tmp_path / "m.ckpt")])
        assert ended.value.code == 2
        assert "make room, or write elsewhere" in capsys.readouterr().err
        assert contents(tmp_path) == held


def test_a_training_whose_snapshots_have_no_room_says_so(tmp_path):
    """The error of the thread that writes comes out, and the module is as it was."""
    net = Net()
    merge = MergeCheckpoints(WSM(), last=2, every_n_steps=1, directory=tmp_path / "merge")
    with room(100), pytest.raises(OSError, match=r"step=\d.safetensors could not be written"):
        fit(merge, net=net)
    assert list((tmp_path / "merge").iterdir()) == []
    assert not [key for key in vars(net) if key == "training_step"]
    fit(merge, net=net, train=loader())
    assert merge.path.is_file()


def test_a_file_of_before_is_replaced_whole(tmp_path):
    """What is open already goes on reading the old one."""
    sources(tmp_path)
    (tmp_path / "mine/empty").mkdir(parents=True)
    path = tmp_path / "mine/merge.safetensors"
    WRITERS[path.name](tmp_path / "mine", 0, path)
    with path.open("rb") as file:
        WRITERS[path.name](tmp_path / "mine", 1, path)
        (tmp_path / "old.safetensors").write_bytes(file.read())
    assert (read(tmp_path / "old.safetensors"), read(path)) == (0, 1)


def test_missing_folders_are_made_and_go_again_after_an_error(tmp_path):
    path = tmp_path / "new" / "newer" / "file.pt"
    with pytest.raises(AttributeError), replaced(path) as partial:
        write_torch(partial, lambda: "a function that no pickle holds")
    assert not list(tmp_path.iterdir())
    with replaced(path) as partial:
        write_torch(partial, 1)
    assert list(path.parent.iterdir()) == [path]
    assert torch.load(path) == 1


def test_a_disk_that_keeps_something_else_is_noticed(tmp_path, monkeypatch):
    files = [tmp_path / f"step={step}.safetensors" for step in (1, 2)]
    for file in files:
        save_file({"w": torch.ones(2), "b": torch.ones(1)}, file)
    held = contents(tmp_path)
    monkeypatch.setattr(writing, "write_safetensors", lambda path, *_, **__: save_file({"w": torch.ones(2)}, path))
    with pytest.raises(RuntimeError, match="does not hold what was written to it"):
        merge_checkpoints(files, WSM(), tmp_path / "merged.safetensors")
    assert contents(tmp_path) == held


@pytest.mark.processes
@pytest.mark.slow
def test_kills(tmp_path):
    """A process that writes again and again, killed at drawn moments; some of them are in the middle of a write."""
    script = Path(__file__).with_name("kills.py")
    run = processes.start(script, tmp_path, KILLS, stdout=subprocess.PIPE)
    out, _ = run.communicate(timeout=250)
    assert run.returncode == 0
    found = json.loads(out.splitlines()[-1])
    assert found.keys() == WRITERS.keys()
    assert all(len(left) == KILLS for left in found.values())
    assert any(map(any, found.values()))
