"""What is told about a merge before it is made."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_objectives._files import plan
from lightning_objectives.kinds import Merge
from lightning_objectives.merging import (
    SLERP,
    TIES,
    WSM,
    FisherMerging,
    GreedySoup,
    ModelStock,
    UniformSoup,
    merge_checkpoints,
)

STATE = {"w": torch.rand(300, 100), "b": torch.rand(100).half(), "n": torch.tensor(7)}


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """The plan of a merge of two files, which must write nothing."""
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        save_file({name: value + step for name, value in STATE.items()}, f"step={step}.safetensors")
    save_file(STATE, "base.safetensors")
    save_file({"w": torch.rand(300, 100), "b": torch.rand(100)}, "importance.safetensors")

    def plan_of(method, files=("step=1.safetensors", "step=2.safetensors"), **given):
        before = sorted(Path().iterdir())
        merge_checkpoints(files, method, "out.safetensors", dry_run=True, verbose=True, **given)
        assert sorted(Path().iterdir()) == before
        return capsys.readouterr().out

    return plan_of


def test_files_shares_and_sizes_of_a_linear_merge(planned):
    """300 · 100 · 4 + 100 · 2 bytes are merged: 117.4 KiB; two files of 120208 bytes are read: 234.8 KiB."""
    lines = planned(WSM(shape="square")).splitlines()
    assert lines[0] == "WSM(shape='square', ema_weight=0.2) merges into out.safetensors:"
    assert lines[1:3] == [
        "  step=1.safetensors  step 1  coefficient 0.2500",
        "  step=2.safetensors  step 2  coefficient 0.7500",
    ]
    assert lines[3:5] == [
        "merged: 2 tensors, 117 KiB",
        "copied from the newest file and not merged (whole numbers, or no tensors): ['n']",
    ]
    assert re.fullmatch(r"memory: about 32.1 MiB, estimated from the largest tensor, w", lines[5])
    assert re.fullmatch(
        r"time: about \S+ s to read 235 KiB once and merge it, at [\d.]+ [KMG]iB a second, measured now with 234 KiB "
        r"of w; then 117 KiB are written to the disk",
        lines[6],
    )
    assert len(lines) == 7


def test_the_time_is_the_size_by_the_rate(planned, monkeypatch):
    """A clock that says half a second for the 240000 bytes of w: 240416 bytes take 0.50087 s."""
    times = iter([10.0, 10.5])
    monkeypatch.setattr(plan, "perf_counter", lambda: next(times))
    found = planned(UniformSoup())
    assert "about 0.5 s to read 235 KiB once and merge it, at 469 KiB a second, measured now" in found


def test_the_rate_is_measured_with_a_tensor_that_is_neither_tiny_nor_huge(tmp_path, monkeypatch, capsys):
    """Two files and 2^11 elements of all files: the one of 900 is nearest to 1024 in each."""
    monkeypatch.setattr(plan, "_SAMPLE", 2**11)
    sizes = {"tiny": 3, "small": 400, "right": 900, "huge": 100_000, "empty": 0}
    for place in range(2):
        save_file({name: torch.rand(size) for name, size in sizes.items()}, tmp_path / f"{place}.safetensors")
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    merge_checkpoints(files, UniformSoup(), tmp_path / "out.safetensors", dry_run=True, verbose=True)
    assert "measured now with 7.03 KiB of right" in capsys.readouterr().out


def test_the_rate_is_of_both_passes(planned, monkeypatch):
    """360000 bytes of w are measured and merged in half a second: 360624 bytes of three files take 0.50087 s."""
    times = iter([10.0, 10.5])
    monkeypatch.setattr(plan, "perf_counter", lambda: next(times))
    assert "about 0.5 s to read 352 KiB twice" in planned(TIES(), base="base.safetensors")


def test_a_base_and_a_first_pass(planned):
    """TIES measures the network first: three files are read twice."""
    found = planned(TIES(), base="base.safetensors")
    assert "\n  base.safetensors  the base\n" in found
    assert "coefficient" not in found
    assert "to read 352 KiB twice, the first time to measure the whole network, and merge it" in found
    assert "and what the method keeps of its first pass" in found


def test_buffers_and_importance(planned):
    importance = ["importance.safetensors"] * 2
    found = planned(FisherMerging(), importance=importance, buffers=["b"])
    assert "  step=2.safetensors  step 1  importance importance.safetensors\n" in found
    assert "merged: 1 tensor, 117 KiB\nplain mean in place of the merge: 1 tensor, 200 B, ['b']\n" in found


def test_a_search_is_not_made(planned):
    calls = []
    found = planned(GreedySoup(), evaluate=calls.append)
    assert calls == []
    assert "The coefficients are searched, and printed when they are found." in found
    assert "and one whole merge while the search tries it" in found
    assert "for each merge that the search tries, beside your function's own, and for the merge" in found


def test_the_shares_of_a_search_are_printed_once_they_are_found(tmp_path, capsys):
    for place, value in enumerate((1.0, 5.0)):
        save_file({"w": torch.tensor([value])}, tmp_path / f"{place}.safetensors")
    files, out = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "out.safetensors"
    merge_checkpoints(files, GreedySoup(), out, evaluate=lambda state: state["w"].item(), verbose=True)
    printed = capsys.readouterr().out
    assert f"{files[0]}  coefficient 0.0000\n  {files[1]}  coefficient 1.0000" in printed


@pytest.mark.parametrize("method", [SLERP(), ModelStock()])
def test_the_memory_of_a_merge_by_whole_tensors_is_estimated_by_its_copies(planned, method):
    """120000 bytes of w, and twelve copies in float32: 1.488 MiB."""
    given = {"base": "base.safetensors"} if "base" in method.asks else {}
    assert "memory: about 1.49 MiB, estimated from the largest tensor, w" in planned(method, **given)


def test_a_rate_that_cannot_be_measured_is_called_a_guess(planned):
    """The one tensor that is tried has no norm; the whole network has one, so that this is no reason to stop."""
    save_file({"w": torch.zeros(300, 100), "b": torch.ones(100)}, "importance.safetensors")
    found = planned(FisherMerging(), importance=["importance.safetensors"] * 2)
    assert "at 200 MiB a second, which is a guess, because nothing could be tried" in found


def test_a_network_without_real_numbers(planned):
    save_file({"n": torch.tensor(3)}, "step=1.safetensors")
    found = planned(UniformSoup(), files=["step=1.safetensors"])
    assert "merged: nothing" in found
    assert "which is a guess" in found


def test_the_plan_draws_nothing_and_changes_nothing(tmp_path):
    """The merge after a plan is the merge without one."""
    for place in range(2):
        save_file({"w": torch.rand(50)}, tmp_path / f"{place}.safetensors")
    save_file({"w": torch.rand(50)}, tmp_path / "base.safetensors")
    outs = [tmp_path / f"out{verbose}.safetensors" for verbose in (False, True)]
    for verbose, out in enumerate(outs):
        files = [tmp_path / f"{place}.safetensors" for place in range(2)]
        before = torch.get_rng_state()
        merge_checkpoints(files, TIES(), out, base=tmp_path / "base.safetensors", verbose=bool(verbose))
        assert torch.equal(torch.get_rng_state(), before)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_all_files_that_do_not_fit_are_told_at_once(tmp_path):
    save_file({"v": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"w": torch.ones(3)}, tmp_path / "two.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "good.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "good")]
    with pytest.raises(ValueError, match=r"one\.safetensors does not match .*\n.*w is .* in .*two\.safetensors"):
        merge_checkpoints(files, UniformSoup(), tmp_path / "out.safetensors", dry_run=True)
    missing = [tmp_path / "none.pt", files[2], tmp_path / "text.txt"]
    (tmp_path / "text.txt").touch()
    with pytest.raises(ValueError, match=r"none\.pt does not exist.*\n.*text\.txt has the suffix"):
        merge_checkpoints(missing, UniformSoup(), tmp_path / "out.safetensors", dry_run=True)


def test_a_target_that_cannot_be_written_is_refused_before_the_network_is_measured(tmp_path):
    class Measures(Merge):
        linear = False

        def statistics(self, network):
            raise AssertionError("the files were read")

    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is no Lightning checkpoint, so none can be made of it"):
        merge_checkpoints([tmp_path / "a.safetensors"], Measures(), tmp_path / "out.ckpt")
    with pytest.raises(ValueError, match="is an input"):
        merge_checkpoints([tmp_path / "a.safetensors"], Measures(), tmp_path / "a.safetensors", dry_run=True)


def test_a_first_tensor_that_is_not_finite_does_not_stop_the_plan(planned):
    save_file({**STATE, "w": torch.full((300, 100), math.nan)}, "step=1.safetensors")
    assert "which is a guess" in planned(UniformSoup())
