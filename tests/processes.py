"""Starts trainings in processes of their own, and ends them whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

PACKAGE = str(Path(__file__).parents[1])


def start(script, *words, **settings):
    """``python script words``, in a process group of its own; ``settings`` are those of Popen."""
    path = os.pathsep.join([PACKAGE, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, script, *map(str, words)]
    return subprocess.Popen(command, env=environment, start_new_session=True, **settings)


def ranks(script, run, directory):
    """What the two processes of ``run`` wrote; a run that hangs is killed after a minute and a half."""
    directory.mkdir(exist_ok=True)
    process = start(script, run, directory)
    try:
        assert process.wait(timeout=90) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def killed(script, *words, directory):
    """Send SIGKILL to a training once it says that it is ``ready``; returns its newest checkpoint."""
    process = start(script, *words)
    try:
        deadline = time.monotonic() + 90
        while not (directory / "ready").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    return max(directory.glob("*.ckpt"))
