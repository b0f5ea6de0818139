"""The loop of the examples with Lightning Fabric: alike on both processes, and an exact resume."""

from pathlib import Path

import pytest
import torch
from processes import PATIENCE, start

pytestmark = pytest.mark.processes
FILE = Path(__file__).parents[2] / "examples" / "plain_loop" / "fabric_digits.py"


def run(folder, epochs, processes=2):
    process = start(FILE, "--epochs", epochs, "--folder", folder, "--processes", processes)
    try:
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_both_processes_have_one_average_and_a_resume_is_exact(tmp_path):
    whole = run(tmp_path / "whole", 2)
    for part in ("raw", "average"):
        assert same(whole[0][part], whole[1][part])
    assert not torch.equal(whole[0]["raw"]["1.weight"], whole[0]["average"]["1.weight"])
    run(tmp_path / "parts", 1)
    for rank in run(tmp_path / "parts", 2):
        assert same(rank["raw"], whole[0]["raw"])
        assert same(rank["average"], whole[0]["average"])
