"""One training under FSDP2 that saves folders, and one that saves files: ``python sharded_files_runs.py both DIR``."""

import sys
from pathlib import Path

import torch
from sharded_runs import Sharded, train, two_dimensional


def both(directory):
    """Train twice; the files lie below the directory."""
    for kind in ("distributed", "consolidated"):
        train(directory / kind, strategy=two_dimensional(distributed=kind == "distributed"), net=Sharded)
    return {}


if __name__ == "__main__":
    run, directory = sys.argv[1], Path(sys.argv[2])
    results = {"both": both}[run](directory)
    torch.save(results, directory / f"rank{torch.distributed.get_rank()}.pt")
