"""Distillation in two processes is that of one with the joined batch."""

import os
import signal
import subprocess
import sys

import distill_runs
import pytest
import torch

pytestmark = pytest.mark.processes


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    command = [sys.executable, distill_runs.__file__, "joined", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        assert process.wait(timeout=90) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    one = distill_runs.joined(1)
    assert len({tuple(result["net"]["fc.bias"].tolist()) for result in one.values()}) == len(one)  # all do something
    for name, result in one.items():
        assert first[name]["net"].keys() == result["net"].keys()
        for key, value in result["net"].items():
            torch.testing.assert_close(first[name]["net"][key], second[name]["net"][key], rtol=0, atol=0)
            torch.testing.assert_close(first[name]["net"][key], value, rtol=0, atol=1e-9)
