"""Distillation in two processes is that of one with the joined batch."""

import distill_runs
import pytest
import torch
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
