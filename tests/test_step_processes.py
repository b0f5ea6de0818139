"""Two processes are one with the joined batch."""

import pytest
import step_runs
import torch
from processes import ranks

pytestmark = pytest.mark.processes


def assert_close(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=atol)


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    first, second = ranks(step_runs.__file__, "joined", tmp_path)
    one = step_runs.joined(1)
    assert len({tuple(result["net"]["fc.bias"].tolist()) for result in one.values()}) == len(one)  # all do something
    for name, result in one.items():
        assert_close(first[name]["net"], second[name]["net"])
        assert_close(first[name]["net"], result["net"])
    assert_close(first["again"]["net"], one["again"]["net"], 1e-12)


def test_two_processes_measure_and_fit_what_one_does(tmp_path):
    first, second = ranks(step_runs.__file__, "evaluated", tmp_path)
    one = step_runs.evaluated(1)["evaluated"]["net"]
    names = {"val/ood_auroc", "val/ood_fpr95", "val/sets/size", "val/calibrated/nll", "points", "threshold"}
    assert {*names, "val/rank/dataloader_idx_0", "val/rank/dataloader_idx_1"} <= one.keys()
    for result in (first, second):
        assert_close(result["evaluated"]["net"], one)


def test_each_process_moves_its_weights_by_its_own_gradient(tmp_path):
    first, second = ranks(step_runs.__file__, "moved_by_rank", tmp_path)
    one = step_runs.moved_by_rank(1)
    for result in (first, second):
        assert_close(result["net"]["net"], one["net"]["net"])


def test_weights_of_one_on_uneven_ranks_are_untouched_ddp(tmp_path):
    first, second = ranks(step_runs.__file__, "uneven", tmp_path)
    for result in (first, second):
        for key, value in result["plain"]["net"].items():
            assert torch.equal(value, result["ones"]["net"][key])
            assert not torch.equal(value, result["weighted"]["net"][key])
    assert [len(losses) for losses in first["seen"]] == [8, 5, 8, 5]
    assert all(torch.equal(a, b) for a, b in zip(first["seen"], second["seen"]))
    assert all((losses > 0).all() for losses in first["seen"])  # no padding among them
