"""How long a snapshot of `MergeCheckpoints` holds up the training, and what it takes of the memory.

A resnet18 of timm, random weights, in a fit whose own step is almost nothing. Each snapshot is timed as the training
sees it, the whole of `on_train_batch_end`, in turn with one copy of the same tensors in memory; `cpu` is what the
training's own thread worked, without what it waited for. With files, snapshots are taken while nothing is being
written, while the one before is, and while two wait, which is when the training has to wait.
"""

import multiprocessing
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import lightning as L
import timm
import torch

from lightning_objectives._weights.whole_state import persistent_tensors
from lightning_objectives.callbacks import MergeCheckpoints
from lightning_objectives.merging import WSM

COPY = "one copy in memory"


class Idle(L.LightningModule):
    """A resnet18 that trains the bias of its head."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("resnet18")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.network.fc.bias.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.network.fc.bias], 1e-3)


class Rounds(L.Callback):
    """Takes the snapshots, four a round; the other callback finds them taken."""

    def __init__(self, merge: MergeCheckpoints) -> None:
        self.merge = merge
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        def snapshot() -> None:
            self.merge.on_train_batch_end(trainer, module, outputs, batch, batch_idx)

        def copy() -> None:
            self.copies = [tensor.detach().clone() for tensor in tensors]

        tensors = list(persistent_tensors(module).values())
        finish = getattr(self.merge._window, "finish", lambda: None)
        form = f"snapshot, keep={self.merge.keep!r}"
        turn = batch_idx % 4
        if turn in (0, 3):
            finish()
        if turn == 0:
            self.time(COPY, copy)
            self.copies = []
            self.time(form, snapshot)
        elif self.merge.keep == "sum":
            self.time(form, snapshot)
        elif turn == 1:
            self.time(f"{form}, the one before is being written", snapshot)
        elif turn == 2:
            self.time(f"{form}, two wait to be written", snapshot)
        else:
            snapshot()
            self.time(f"{COPY}, a snapshot is being written", copy)
            self.copies = []
            self.time("the rest of that writing, in the background", finish)

    def time(self, name: str, work: Callable[[], object]) -> None:
        cpu, wall = thread_time(), perf_counter()
        work()
        self.seconds[name].append((perf_counter() - wall, thread_time() - cpu))


class Memory(L.Callback):
    """The most anonymous memory from the start of the training on, beyond what there was then."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.before = self.most = _anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            self.most = max(self.most, _anonymous())

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        self._ended.set()
        self._thread.join()


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Waits(L.Callback):
    """Lets each snapshot be written before the next is taken, as it is where they are far apart."""

    def __init__(self, merge: MergeCheckpoints) -> None:
        self.merge = merge

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.merge._window.finish()


def fit(keep: str, steps: int, last: int, make: Callable[[MergeCheckpoints], list[L.Callback]]) -> list[L.Callback]:
    """A training with a snapshot after each of its steps, the last of them merged; the callbacks beside."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "merge"
        merge = MergeCheckpoints(WSM(), last=last, every_n_steps=1, keep=keep, directory=directory)
        others = make(merge)
        trainer = L.Trainer(
            max_epochs=1,
            callbacks=[*others, merge],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Idle(), torch.utils.data.DataLoader(torch.zeros(steps, 1)))
        return others


def peak(keep: str, waits: bool, steps: int) -> float:
    """The most memory of a training and its merge beyond what it began with, in bytes."""
    torch.set_num_threads(1)
    memory = fit(keep, steps, steps // 2, lambda merge: [Memory(), *([Waits(merge)] if waits else [])])[0]
    return memory.most - memory.before


def main(*, rounds: int = 5, memory: bool = True) -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for _ in range(2):  # the forms in turn
            for keep in ("files", "sum"):
                taken = fit(keep, 4 * rounds, 4 * rounds if keep == "sum" else 2, lambda merge: [Rounds(merge)])[0]
                for name, found in taken.seconds.items():
                    seconds[name] += found
    finally:
        torch.set_num_threads(threads)
    middle = {name: [median(column) for column in zip(*found)] for name, found in seconds.items()}
    (wall, cpu), rows = middle[COPY], []
    for name, (its_wall, its_cpu) in middle.items():
        amounts = {"amount": 1e3 * its_wall, "unit": "ms", "in copies": its_wall / wall, "cpu ms": 1e3 * its_cpu}
        rows.append({"what": name, **amounts, "cpu in copies": its_cpu / cpu})
    bytes_of_copy = sum(tensor.nbytes for tensor in persistent_tensors(Idle()).values())
    spawn = multiprocessing.get_context("spawn")  # what one form has left to the allocator would hide the other
    forms = {
        "memory, keep='files', snapshots far apart": ("files", True),
        "memory, keep='files', one after the other": ("files", False),
        "memory, keep='sum'": ("sum", False),
    }
    for name, (keep, waits) in forms.items() if memory else ():
        with spawn.Pool(1) as pool:
            most = pool.apply(peak, (keep, waits, 8))
        amounts = {"amount": most / 1e6, "unit": "MB", "in copies": most / bytes_of_copy}
        rows.append({"what": name, **amounts, "cpu ms": None, "cpu in copies": None})
    width = max(len(row["what"]) for row in rows)
    print(f"{'':<{width}}{'amount':>12}{'in copies':>11}{'cpu ms':>9}{'in copies':>11}")
    for row in rows:
        line = f"{row['what']:<{width}}{row['amount']:9.1f} {row['unit']}{row['in copies']:11.2f}"
        print(line + ("" if row["cpu ms"] is None else f"{row['cpu ms']:9.1f}{row['cpu in copies']:11.2f}"))
    return rows


if __name__ == "__main__":
    main(rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 5)
