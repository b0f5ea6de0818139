"""What can be read out of one training beside its raw weights: averages that rode on it, merges of its snapshots."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_objectives.callbacks import AverageWeights, MergeCheckpoints
from lightning_objectives.merging import WSM, merge_checkpoints

SNAPSHOTS = 36
"""Taken in one training, evenly spaced."""
NORM_BATCHES = 8
"""Batches of 500 training images that BatchNorm's statistics are re-estimated on."""


@dataclass(frozen=True)
class Merged:
    """A merge of every ``stride``-th of the last ``window`` snapshots up to the part ``until`` of the training."""

    window: int = 9
    stride: int = 1
    shape: str = "1-sqrt"
    until: float = 1.0

    def files(self, found: list[Path]) -> list[Path]:
        last = round(self.until * SNAPSHOTS)
        return found[:last][::-1][: self.window : self.stride][::-1]


MERGES = {
    "WSM 1-sqrt": Merged(),
    "WSM mean": Merged(shape="linear"),
    "WSM ema": Merged(shape="ema"),
    **{
        f"WSM 1-sqrt, window {w}/36, every {s}": Merged(w, s)
        for w, s in ((3, 1), (9, 3), (18, 1), (18, 2), (18, 6), (27, 3))
    },
    "WSM 1-sqrt, after a third": Merged(window=3, until=1 / 3),
    "WSM 1-sqrt, after two thirds": Merged(window=6, until=2 / 3),
}
"""Decays that one training is read as; the first is the paper's, over the last quarter, as long as WSD's decay."""
WINDOWS = {"WSM 1-sqrt": 9, "WSM 1-sqrt, window 3/36, every 1": 3, "WSM 1-sqrt, window 18/36, every 1": 18}
"""The candidates of the search: the length of the window."""


def snapshots(steps: int, directory: str) -> MergeCheckpoints:
    """The callback that keeps them."""
    return MergeCheckpoints(WSM(), last=SNAPSHOTS, every_n_steps=max(1, steps // SNAPSHOTS), directory=directory)


def read_out(
    module: nn.Module, averages: dict[str, AverageWeights], directory: str | None, loader: Any, *, few: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Each network by its name, BatchNorm's statistics re-estimated by a pass over the training data."""
    yield "raw", module
    for name, callback in averages.items():
        with callback.applied(module):
            yield name, fresh_norms(module, loader)
    if averages and not few:
        name, callback = next((name, c) for name, c in averages.items() if name.startswith("EMA"))
        if _norms(module):  # the trap of statistics that belong to other weights
            with callback.applied(module):
                yield f"{name}, averaged statistics", deepcopy(module)
            yield f"{name}, raw statistics", _with_buffers(callback, module)
    if directory is None:
        return
    found = sorted(Path(directory).rglob("*.safetensors"), key=_step)
    for name, merge in MERGES.items():
        if few and name != "WSM 1-sqrt":
            continue
        merged = merge_checkpoints(merge.files(found), WSM(shape=merge.shape), Path(directory, "merged.safetensors"))
        network = deepcopy(module)
        network.load_state_dict(load_file(merged))
        merged.unlink()
        yield name, fresh_norms(network, loader)


def _step(file: Path) -> int:
    return int("".join(filter(str.isdigit, file.stem)))


def _with_buffers(callback: AverageWeights, module: nn.Module) -> nn.Module:
    """The average beside the buffers of the raw weights."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with callback.applied(module):
        network = deepcopy(module)
    for name, buffer in network.named_buffers():
        buffer.copy_(buffers[name])
    return network


def _norms(module: nn.Module) -> bool:
    return any(isinstance(child, nn.BatchNorm2d) for child in module.modules())


@torch.no_grad()
def fresh_norms(module: nn.Module, loader: Any) -> nn.Module:
    """A copy with statistics of its own weights, where it has BatchNorm."""
    if not _norms(module):
        return deepcopy(module)
    network = deepcopy(module)
    update_bn((batch[0] for batch in islice(loader, NORM_BATCHES)), network)
    return network
