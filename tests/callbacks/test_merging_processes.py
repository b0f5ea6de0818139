from pathlib import Path

import merging_runs
import pytest
import torch
from averaging_nets import equal, fit, loader
from processes import killed, ranks
from safetensors.torch import load_file

from lightning_objectives.merging import wsm_coefficients

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]
RUNS = merging_runs.__file__


def test_a_training_that_was_killed_keeps_its_snapshots(tmp_path):
    last = killed(RUNS, "killed", tmp_path, directory=tmp_path)
    assert last.name == "epoch=1.ckpt"
    assert not list((tmp_path / "merge").glob("merged*"))
    resumed = merging_runs.single(tmp_path, last)
    whole = merging_runs.single(tmp_path / "whole")
    assert equal(resumed, whole)
    steps = sorted(int(p.stem.partition("=")[2]) for p in (tmp_path / "merge").glob("step=*"))
    assert {11, 12, 13, 14, 15, 16} <= set(steps)


def summed(path, merged, atol):
    """The running sum of the same training is the merge of its files."""
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state.keys() == merged.keys()
    assert not list(Path(path).parent.glob("step=*"))
    for name, value in merged.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=atol)


def test_two_processes_agree_on_the_merge_and_it_is_that_of_the_joined_batch(tmp_path):
    first, second = ranks(RUNS, "ddp", tmp_path)
    assert equal(first, second)
    assert "val/wsm/nll" in first["logged"]
    assert Path(first["path"]) == tmp_path / "merge" / "merged.ckpt"
    merged = torch.load(first["path"], weights_only=True)["state_dict"]
    for name, value in first["weights"].items():
        torch.testing.assert_close(merged[name], value, rtol=0, atol=0)
    summed(first["sum"], merged, 1e-14)
    snapshots = sorted(Path(first["path"]).parent.glob("step=*"))
    assert [path.stem for path in snapshots] == ["step=2", "step=3", "step=4"]
    shares = wsm_coefficients([2, 3, 4])
    weight = sum(c * load_file(path)["layers.0.weight"] for c, path in zip(shares, snapshots))
    torch.testing.assert_close(merged["layers.0.weight"], weight, rtol=0, atol=1e-12)


def test_shards_are_merged_as_the_whole(tmp_path):
    first, second = ranks(RUNS, "sharded", tmp_path)
    assert (first.pop("kept"), second.pop("kept")) == (len(first["net"]), 0), "one process has the sum"
    assert equal(first, second)
    alone, _ = fit(data=loader(batch_size=8))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first["net"][name], value, rtol=0, atol=1e-5)
    merged = torch.load(first["path"], weights_only=True)["state_dict"]
    summed(first["sum"], merged, 1e-6)
    path = [*alone.path[1:], torch.cat([p.detach().flatten() for p in alone.parameters()])]
    expected = sum(c * w for c, w in zip(wsm_coefficients([2, 3, 4]), path[-3:]))
    found = torch.cat([merged[name].flatten() for name, _ in alone.named_parameters()])
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-5)
