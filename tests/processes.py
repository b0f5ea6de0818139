"""Starts trainings in processes of their own, and ends them whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

PATIENCE = float(os.environ.get("PATIENCE", "240"))
"""Seconds for a script of many trainings; a collective that hangs gives up after a minute by itself."""
PACKAGE = str(Path(__file__).parents[1])


def start(script, *words, **pipes):
    """``python script words``, in a process group of its own."""
    path = os.pathsep.join([PACKAGE, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, script, *map(str, words)]
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def finished(script, run, directory):
    """Wait for all processes of ``run``; one that hangs is killed in the end."""
    directory.mkdir(exist_ok=True)
    process = start(script, run, directory)
    try:
        assert process.wait(timeout=PATIENCE) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def ranks(script, run, directory):
    """What the two processes of ``run`` wrote."""
    finished(script, run, directory)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def killed(script, *words, directory):
    """Send SIGKILL to a training once it says that it is ``ready``; returns its newest checkpoint."""
    process = start(script, *words)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (directory / "ready").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    return max(directory.glob("*.ckpt"))
