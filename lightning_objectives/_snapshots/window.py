"""Keeps the newest snapshots of a training, as files."""

import json
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_objectives._files.merge import copies_sentence, merged_or_newest
from lightning_objectives._files.reading import in_order, open_source
from lightning_objectives._files.source import ODD_BUFFERS
from lightning_objectives._files.writing import replaced, write_safetensors
from lightning_objectives._snapshots.background import Background
from lightning_objectives._snapshots.entries import Entries
from lightning_objectives._snapshots.rates import varying_rates
from lightning_objectives._trainer.lightning import rank_zero_info, rank_zero_warn
from lightning_objectives._trainer.ranks import on_rank_zero
from lightning_objectives._weights.optimizer_steps import Rates
from lightning_objectives._weights.whole_state import buffer_names, cpu_copies
from lightning_objectives.kinds import Merge


class Window(Entries):
    """Keeps the last ``last`` snapshots, each in a safetensors file that opens without this package.

    Every process knows which snapshots there are; the one with ``writes`` writes and deletes the files, beside the
    training. A file that has left the window stays as long as one of the two newest checkpoints needs it to go on.

    Args:
        folder: where the files are.
        module: the module whose snapshots are taken.
        method: merges them.
        last: how many are merged, at most.
        writes: whether this process writes and deletes the files.
    """

    def __init__(self, folder: Path, module: Any, method: Merge, *, last: int, writes: bool) -> None:
        super().__init__()
        self.folder = folder
        self.module = module
        self.method = method
        self.last = last
        self.writes = writes
        self._outdated: list[str] = []
        """Files that have left the window and are not deleted yet."""
        self._needed: list[list[str]] = []
        """The files that each of the two newest checkpoints needs."""
        self._copied: list[str] = []
        """The buffers that the last merge has from the newest snapshot alone."""
        self._background = Background()

    @classmethod
    def begin(
        cls,
        trainer: Any,
        module: Any,
        method: Merge,
        *,
        last: int,
        state: Mapping[str, Any] | None,
        folder: Callable[[], Path],
    ) -> "Window":
        """Begin an empty window in a new folder, or go on with that of a state."""
        where = folder() if state is None else Path(state["folder"])
        window = cls(where, module, method, last=last, writes=trainer.is_global_zero)
        if state is None:
            return window
        missing = on_rank_zero(trainer, lambda: _look_through(state))
        window.load_state_dict(state, missing=missing)
        if missing:
            rank_zero_warn(
                f"{len(missing)} snapshots of the checkpoint are not there any more, or damaged: {missing}. The merge "
                f"goes on with those of the steps {window.steps}, and is made of fewer until there are {last} again. "
                "To keep them, put the files back and resume again."
            )
        return window

    def take(self, step: int, rates: Rates) -> None:
        """Take a snapshot of the module; all ranks take part."""
        tensors = cpu_copies(self.module, keep=self.writes)
        path = self.folder / f"step={step}.safetensors"
        self.entries = [entry for entry in self.entries if entry["step"] < step]
        self.entries.append({"step": step, "file": str(path), "rates": dict(rates)})
        self._outdated += [entry["file"] for entry in self.entries[: -self.last]]
        self.entries = self.entries[-self.last :]
        if self.writes:
            metadata = {"step": str(step)}
            odd = [name for name in buffer_names(self.module) if not tensors[name].isfinite().all()]
            self._background.submit(
                write_snapshot, path, tensors, metadata | ({ODD_BUFFERS: json.dumps(odd)} if odd else {})
            )
        self._clean()

    def _clean(self) -> None:
        needed = {entry["file"] for entry in self.entries} | {file for files in self._needed for file in files}
        unneeded = [file for file in self._outdated if file not in needed]
        self._outdated = [file for file in self._outdated if file in needed]
        if self.writes:
            for file in unneeded:
                self._background.submit(_delete, Path(file))

    def merge(self) -> dict[str, Tensor]:
        """Merge the snapshots, in memory."""
        self.finish()
        sources, steps = in_order(entry["file"] for entry in self.entries)
        shares: list[float] = self.method.coefficients(steps).tolist()
        buffers, copied = buffer_names(self.module), list[str]()
        merged = {
            name: merged_or_newest(name, sources, shares, buffers=buffers, copied=copied).clone()
            for name in sources[-1].keys
        }
        if copied and copied != self._copied:
            rank_zero_info(copies_sentence(copied))
        self._copied = copied
        return merged

    def finish(self) -> None:
        """Wait until all files are written; raises what went wrong."""
        self._background.wait()

    def close(self) -> None:
        """End the thread that writes."""
        self._background.close()

    def state_dict(self) -> dict[str, Any]:
        """The snapshots and their folder; all files are written when this returns."""
        self.finish()
        self._needed = [*self._needed[-1:], [entry["file"] for entry in self.entries]]
        self._clean()
        return {"entries": list(self.entries), "left": list(self._outdated), "folder": str(self.folder)}

    @staticmethod
    def check(state: Mapping[str, Any]) -> None:
        """Check that a state names only snapshots in its own folder, because the window deletes old ones.

        Raises:
            ValueError: it names something else, or has another form.
        """
        folder = Path(state["folder"])
        named = [(f"step={int(entry['step'])}.safetensors", entry["file"]) for entry in state["entries"]]
        named += [(Path(file).name, file) for file in state["left"]]
        for name, file in named:
            if Path(file) != folder / name or not re.fullmatch(r"step=\d+\.safetensors", name):
                raise ValueError(f"{file!r} is no snapshot in {str(folder)!r}, such as step=100.safetensors")
        varying_rates(entry["rates"] for entry in state["entries"])  # A wrong form must fail here, not at the merge.

    def load_state_dict(self, state: Mapping[str, Any], *, missing: Container[str] = ()) -> None:
        """Go on with the snapshots of a state, without those that are missing."""
        self.folder = Path(state["folder"])
        self.entries = [entry for entry in state["entries"] if entry["file"] not in missing][-self.last :]
        self._outdated = list(state["left"])
        self._needed = [[entry["file"] for entry in state["entries"]]]


def _look_through(state: Mapping[str, Any]) -> list[str]:
    """Delete unfinished files in the folder of a state; returns its snapshots that are gone or damaged.

    One process does it for all, before any of them goes on: a process that came late would delete what another writes.
    """
    _delete_unfinished(Path(state["folder"]))
    return [entry["file"] for entry in state["entries"] if not _opens(entry["file"])]


def _opens(file: str) -> bool:
    try:
        open_source(file)
    except ValueError:
        return False
    return True


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a snapshot, which appears whole or not at all."""
    entries = {name: (tensor.dtype, tuple(tensor.shape), name) for name, tensor in tensors.items()}
    with replaced(path) as temporary:
        write_safetensors(temporary, entries, tensors.__getitem__, metadata)


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)


def _delete_unfinished(folder: Path) -> None:
    """Delete what a killed process was writing; a training that goes on is alone in its folder."""
    for path in folder.glob(".*.tmp*"):
        if re.fullmatch(r"\.(step=\d+\.safetensors|merged\.ckpt)\.\d+\.\d+\.tmp\.\w+", path.name):
            _delete(path)
