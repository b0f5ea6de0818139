"""The file that is written: what it may replace, what Ctrl-C leaves, and when the bar is full."""

import io
import os
import signal
import subprocess
import sys
import textwrap

import lightning as L
import pytest
import torch
from tqdm.auto import tqdm

from lightning_objectives import cli
from lightning_objectives._files import linear_merge, progress
from lightning_objectives.merging import WSM, export_checkpoint, merge_checkpoints


def checkpoint(step):
    weights = {"w": torch.full((1000,), float(step)), "b": torch.ones(3), "n": torch.tensor(step)}
    average = {"AverageWeights": {"averages": {}, "raw": {"w": torch.zeros(1000), "b": torch.zeros(3)}}}
    frame = {"pytorch-lightning_version": L.__version__, "global_step": step, "callbacks": average}
    return {**frame, "state_dict": {**weights, "tied": weights["w"]}}


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"step={step}.ckpt" for step in (1, 2)]
    for step, path in enumerate(paths, start=1):
        torch.save(checkpoint(step), path)
    return paths


def held(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# What is there already


def same(tmp_path, path):
    return path


def linked(tmp_path, path):
    (tmp_path / "link.ckpt").symlink_to(path)
    return tmp_path / "link.ckpt"


def around(tmp_path, path):
    (tmp_path / "sub").mkdir()
    return tmp_path / "sub" / ".." / path.name


@pytest.mark.parametrize("way", [same, linked, around], ids=lambda way: way.__name__)
@pytest.mark.parametrize("which", [0, 1])
def test_an_input_is_not_replaced_unless_forced(tmp_path, files, way, which):
    out = way(tmp_path, files[which])
    before = held(tmp_path)
    with pytest.raises(ValueError, match=r"is an input.*force=True \(--force\)"):
        merge_checkpoints(files, WSM(), out)
    with pytest.raises(ValueError, match=r"is an input.*force=True"):
        export_checkpoint(files[which], out, weights="raw")
    assert held(tmp_path) == before
    merge_checkpoints(files, WSM(shape="linear"), out, force=True)
    assert torch.load(out)["state_dict"]["w"][0] == 1.5
    if way is not linked:
        export_checkpoint(files[1 - which], files[1 - which], weights="raw", force=True)
        assert torch.load(files[1 - which])["state_dict"]["w"][0] == 0


def test_any_other_file_is_replaced_by_the_functions(tmp_path, files):
    for write in (lambda out: merge_checkpoints(files, WSM(), out), lambda out: export_checkpoint(files[0], out)):
        (tmp_path / "m.ckpt").write_text("of before")
        assert torch.load(write(tmp_path / "m.ckpt"))["global_step"] in (1, 2)


@pytest.mark.parametrize("command", [["merge"], ["export", "--weights", "raw"]], ids=lambda words: words[0])
@pytest.mark.parametrize("name", ["m.ckpt", "step=1.ckpt"])
def test_the_commands_ask_for_force(tmp_path, files, command, name, capsys):
    out = tmp_path / name
    if name == "m.ckpt":
        out.write_text("of before")
    before = held(tmp_path)
    words = [*command, *map(str, files if command == ["merge"] else files[:1]), "-o", str(out)]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert f"{out} exists: choose another name, or say --force" in capsys.readouterr().err
    assert held(tmp_path) == before
    cli.main([*words, "--force"])
    assert "callbacks" not in torch.load(out) or command != ["merge"]


def test_a_directory_is_no_file_to_write(tmp_path, files, capsys):
    (tmp_path / "m.ckpt").mkdir()
    for force in ([], ["--force"]):
        with pytest.raises(SystemExit):
            cli.main(["merge", *map(str, files), "-o", str(tmp_path / "m.ckpt"), *force])
        assert "is a directory: give the path of the file to write" in capsys.readouterr().err


# Ctrl-C


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("at", ["a tensor", "the flush"])
def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path, files, suffix, at, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if at == "a tensor":
        monkeypatch.setattr(linear_merge, "merged_tensor", interrupt)
    else:
        monkeypatch.setattr(os, "fsync", interrupt)
    (tmp_path / f"old{suffix}").write_text("of before")
    before = held(tmp_path)
    for name in ("new", "old"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["merge", *map(str, files), "-o", str(tmp_path / f"{name}{suffix}"), "--force"])
        assert ended.value.code == 130
        assert capsys.readouterr().err.endswith("\nlightning-objectives: merge was interrupted.\n")
        assert held(tmp_path) == before


@pytest.mark.processes
def test_ctrl_c_of_a_process(tmp_path, files):
    code = """
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
        from lightning_objectives import cli
        from lightning_objectives._files import linear_merge
        def slow(*args):
            print("merging", flush=True)
            time.sleep(60)
        linear_merge.merged_tensor = slow
        cli.main(sys.argv[1:])
    """
    before = held(tmp_path)
    words = ["merge", *map(str, files), "-o", str(tmp_path / "m.ckpt")]
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "merging" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert held(tmp_path) == before


# The bar


class Bar(tqdm):
    """Writes nowhere, and remembers itself."""

    def __init__(self, **settings):
        super().__init__(file=io.StringIO(), **settings)
        type(self).last = self


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_bar_is_full_when_the_file_is_on_the_disk(tmp_path, files, suffix, monkeypatch):
    flush, seen = os.fsync, []

    def watched(file):
        seen.append((Bar.last.desc, Bar.last.n / Bar.last.total, (tmp_path / f"m{suffix}").exists()))
        flush(file)

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(os, "fsync", watched)
    merge_checkpoints(files, WSM(), tmp_path / f"m{suffix}", verbose=True)
    share = 2 / 3 if suffix == ".ckpt" else 1 / 2
    assert seen == [("flushing: ", pytest.approx(share), False)]
    assert Bar.last.n == Bar.last.total > 0


def test_the_bar_of_a_file_of_torch_moves_in_both_files(tmp_path, files, monkeypatch):
    seen = []

    class Moving(Bar):
        def update(self, n=1):
            super().update(n)
            seen.append((self.desc, self.n / self.total))

    monkeypatch.setattr(progress, "tqdm", Moving)
    merge_checkpoints(files, WSM(), tmp_path / "m.ckpt", verbose=True)
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert {stage for stage, _ in seen} == {"merging: ", "writing: ", "flushing: "}
    assert max(share for stage, share in seen if stage == "writing: ") == pytest.approx(2 / 3)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_bar_of_a_failure_is_not_full(tmp_path, files, suffix, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="make room"):
        merge_checkpoints(files, WSM(), tmp_path / f"m{suffix}", verbose=True)
    assert Bar.last.n < Bar.last.total
