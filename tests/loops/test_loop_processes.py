"""A loop in two processes is that of one with the joined batch."""

import loop_runs
import pytest
import torch
from lightning.fabric import Fabric
from processes import ranks


@pytest.mark.processes
def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    first, second = ranks(loop_runs.__file__, "joined", tmp_path)
    one = loop_runs.joined(Fabric(accelerator="cpu", devices=1))
    assert one["steps"] == first["steps"] == 3
    assert not torch.equal(one["average"]["1.0.weight"], one["weights"]["1.0.weight"])
    for rank in (first, second):
        for part in ("weights", "average", "mean"):
            torch.testing.assert_close(rank[part], one[part], rtol=0, atol=1e-9)
            assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
