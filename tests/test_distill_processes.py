"""Distillation in two processes is that of one with the joined batch."""

import distill_runs
import pytest
import torch
from helpers import data
from processes import ranks

pytestmark = pytest.mark.processes


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    first, second = ranks(distill_runs.__file__, "joined", tmp_path)
    one = distill_runs.joined(1)
    assert len({tuple(result["net"]["fc.bias"].tolist()) for result in one.values()}) == len(one)  # all do something
    for name, result in one.items():
        assert first[name]["net"].keys() == result["net"].keys()
        for key, value in result["net"].items():
            torch.testing.assert_close(first[name]["net"][key], second[name]["net"][key], rtol=0, atol=0)
            torch.testing.assert_close(first[name]["net"][key], value, rtol=0, atol=1e-9)


def test_two_processes_share_the_banks_and_the_maps(tmp_path):
    first, second = (result["banks"] for result in ranks(distill_runs.__file__, "banks", tmp_path))
    names = first.keys() - {"net", "rank"}
    assert {"memory.student", "memory.teacher", "memory.label", "maps.student.weight"} <= names
    for name in names:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    torch.testing.assert_close(first["net"], second["net"], rtol=0, atol=0)
    assert (
        first["memory.label"].tolist() == data(dtype=torch.float64).tensors[1].tolist()
    )  # Of all ranks, and none is missing.
