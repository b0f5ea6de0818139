"""Writes again and again, and is killed on the way: ``python kills.py DIRECTORY KILLS`` prints what was found as JSON.

One process imports torch; those that write and are killed are forked from it.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import lightning as L
import torch
from safetensors.torch import load_file

from lightning_objectives._files.logit_cache import LogitCache
from lightning_objectives._snapshots.merged import write_checkpoint
from lightning_objectives._snapshots.window import write_snapshot
from lightning_objectives.merging import WSM, export_checkpoint, merge_checkpoints

SIZE = 50_000


def state(version):
    return {"w": torch.full((SIZE,), float(version)), "n": torch.tensor(version)}


def sources(folder):
    """Checkpoints of which the merge, and the export, is one of two versions."""
    for version in (0, 1):
        common = {"pytorch-lightning_version": L.__version__, "state_dict": state(version)}
        average = {"averages": {}, "raw": state(version)}
        for step in (1, 2):
            frame = common | {"global_step": step, "callbacks": {"AverageWeights": average}}
            torch.save(frame, folder / f"{version}-{step}.ckpt")


def merge(folder, version, path):
    merge_checkpoints([folder.parent / f"{version}-{step}.ckpt" for step in (1, 2)], WSM(), path)


def cache(folder, version, path):
    made = LogitCache(str(folder / "empty"), top_k=None, teacher="a")
    made.directory = path.parent
    made(torch.arange(SIZE // 2), torch.ones(SIZE // 2, 1), lambda x: state(version)["w"].reshape(-1, 2))
    made.save()


WRITERS = {
    "merge.ckpt": merge,
    "merge.safetensors": merge,
    "export.ckpt": lambda folder, version, path: export_checkpoint(folder.parent / f"{version}-1.ckpt", path),
    "raw.safetensors": lambda folder, v, path: export_checkpoint(folder.parent / f"{v}-1.ckpt", path, weights="raw"),
    "step=1.safetensors": lambda folder, version, path: write_snapshot(path, state(version), {"step": "1"}),
    "merged.ckpt": lambda folder, version, path: write_checkpoint({"state_dict": state(version)}, path),
    "logits-0.safetensors": cache,
}


def read(path):
    """The version of a file that is whole; an error for any other."""
    if path.name.startswith("logits"):
        logits = LogitCache(str(path.parent), top_k=None, teacher="a")
        values = logits(torch.arange(SIZE // 2), torch.ones(SIZE // 2, 1), None)
    else:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        values = found.get("state_dict", found)["w"]
    assert values.numel() == SIZE
    assert bool((values == values.flatten()[0]).all())
    return int(values.flatten()[0])


def killed(write, folder, path, delay):
    """Whether a writer, killed after a while, left an unfinished file behind, under a name of its own."""
    heard, says = os.pipe()
    child = os.fork()
    if child == 0:
        version = 0
        while True:
            write(folder, version, path)
            os.write(says, b"w")
            version = 1 - version
    os.read(heard, 1)  # one write is done
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(heard), os.close(says)
    others = [p for p in folder.iterdir() if p not in (path, folder / "empty")]
    assert all(p.name.startswith(".") and ".tmp" in p.name for p in others), others
    assert read(path) in (0, 1)
    for other in others:
        other.unlink()
    return bool(others)


def main(folder, kills):
    torch.set_num_threads(1)
    sources(folder)
    draw, found = random.Random(0), {}
    for name, write in WRITERS.items():
        mine = folder / f"of {name}"
        (mine / "empty").mkdir(parents=True)
        found[name] = [killed(write, mine, mine / name, draw.uniform(0, 0.02)) for _ in range(kills)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
