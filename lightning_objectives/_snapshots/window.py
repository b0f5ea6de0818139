"""Keeps the newest snapshots of a training, as files."""

import json
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_objectives._files.in_memory import InMemory
from lightning_objectives._files.linear_merge import copies_sentence
from lightning_objectives._files.network_merge import NetworkMerge
from lightning_objectives._files.reading import check_match, in_order, open_source
from lightning_objectives._files.source import ODD_BUFFERS
from lightning_objectives._files.writing import replaced, write_safetensors
from lightning_objectives._snapshots.background import Background
from lightning_objectives._snapshots.entries import Entries
from lightning_objectives._snapshots.rates import varying_rates
from lightning_objectives._trainer.lightning import rank_zero_info, rank_zero_warn
from lightning_objectives._trainer.ranks import on_rank_zero
from lightning_objectives._weights.optimizer_steps import Rates
from lightning_objectives._weights.whole_state import buffer_names, cpu_copies, persistent_tensors
from lightning_objectives.kinds import Merge

BASE = "base.safetensors"
"""The name of the file that holds the weights before the first step."""


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
        self.base: Path | None = None
        """The file of the base, for a method that asks for it."""
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
        base: str | Path | None = None,
    ) -> "Window":
        """Begin an empty window in a new folder, or go on with that of a state."""
        where = folder() if state is None else Path(state["folder"])
        window = cls(where, module, method, last=last, writes=trainer.is_global_zero)
        if "base" in method.asks:
            window.base = Path(base) if base is not None else where / BASE
            if state is None and base is None:
                window._write(window.base, {})
            else:
                on_rank_zero(trainer, window._check_base)
        if state is None:
            return window
        missing = on_rank_zero(trainer, lambda: _look_through(state, module))
        window.load_state_dict(state, missing=missing)
        if missing:
            rank_zero_warn(
                f"{len(missing)} snapshots of the checkpoint are not there any more, or damaged: {missing}. The merge "
                f"goes on with those of the steps {window.steps}, and is made of fewer until there are {last} again. "
                "To keep them, put the files back and resume again."
            )
        return window

    def _check_base(self) -> None:
        """Refuse a base that is missing, or of another network, before the training and not at its end."""
        try:
            check_match(open_source(self.base or ""), InMemory(persistent_tensors(self.module), "the module"))
        except ValueError as error:
            raise ValueError(
                f"{self.method!r} cannot merge without its base: {error} Put it back, or give base=, the file of the "
                "weights with which the training began."
            ) from error

    def take(self, step: int, rates: Rates) -> None:
        """Take a snapshot of the module; all ranks take part."""
        path = self.folder / f"step={step}.safetensors"
        self.entries = [entry for entry in self.entries if entry["step"] < step]
        self.entries.append({"step": step, "file": str(path), "rates": dict(rates)})
        self._outdated += [entry["file"] for entry in self.entries[: -self.last]]
        self.entries = self.entries[-self.last :]
        self._write(path, {"step": str(step)})
        self._clean()

    def _write(self, path: Path, metadata: Mapping[str, str]) -> None:
        tensors = cpu_copies(self.module, keep=self.writes)
        if self.writes:
            odd = [name for name in buffer_names(self.module) if not tensors[name].isfinite().all()]
            self._background.submit(
                write_snapshot, path, tensors, {**metadata, **({ODD_BUFFERS: json.dumps(odd)} if odd else {})}
            )

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
        base = None if self.base is None else open_source(self.base)
        merge = NetworkMerge(self.method, sources, steps, base=base, buffers=buffer_names(self.module))
        merged = merge.merged()
        if merge.copied and merge.copied != self._copied:
            rank_zero_info(copies_sentence(merge.copied))
        self._copied = merge.copied
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


def _look_through(state: Mapping[str, Any], module: Any) -> list[str]:
    """Delete unfinished files in the folder of a state; returns its snapshots that are gone or damaged.

    One process does it for all, before any of them goes on: a process that came late would delete what another writes.

    Raises:
        ValueError: a snapshot has tensors of other names or forms than the module.
    """
    _delete_unfinished(Path(state["folder"]))
    return [entry["file"] for entry in state["entries"] if not _opens(entry["file"], module)]


def _opens(file: str, module: Any) -> bool:
    try:
        source = open_source(file)
    except ValueError:
        return False
    try:
        check_match(source, InMemory(persistent_tensors(module), type(module).__name__))
    except ValueError as error:
        raise ValueError(
            f"The checkpoint's snapshots cannot be merged with those to come: {error} Resume with the module as it "
            "was, or move the snapshots away: the merge is then made of those to come."
        ) from error
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
        if re.fullmatch(r"\.(step=\d+\.safetensors|base\.safetensors|merged\.ckpt)\.\d+\.\d+\.tmp\.\w+", path.name):
            _delete(path)
