"""What trainings that are interrupted and resumed need: a loader that goes on, and what two of them left, compared."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_objectives.callbacks import RestoreRandomState
from lightning_objectives.kinds import Method
from lightning_objectives.testing.conformance.case import Case

OF_THE_TRAINING = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "callbacks")
"""What two equal trainings save alike, beside what plug-ins add; Lightning's counters of restarts are its own."""


class StatefulLoader(DataLoader[Any]):
    """Shuffles, and goes on in the middle of an epoch from its state, as torchdata's ``StatefulDataLoader``.

    >>> loader = StatefulLoader(torch.arange(6), batch_size=2)
    >>> first, *rest = iter(loader)
    >>> epoch, other = iter(loader), StatefulLoader(torch.arange(6), batch_size=2)
    >>> _ = next(epoch)
    >>> other.load_state_dict(loader.state_dict())
    >>> [torch.equal(a, b) for a, b in zip(epoch, other)]
    [True, True]
    """

    def __init__(self, dataset: Any, *, batch_size: int) -> None:
        super().__init__(dataset, batch_size=batch_size)
        self._order = torch.zeros(0, dtype=torch.long)
        self._taken = 0
        self._goes_on = False

    def __iter__(self) -> Any:
        if not self._goes_on:
            self._order, self._taken = torch.randperm(len(self.dataset)), 0  # type: ignore[arg-type]  # it has a length
        self._goes_on = False
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        assert self.batch_size is not None
        while self._taken < len(self):
            start = self._taken * self.batch_size
            self._taken += 1
            yield self.collate_fn([self.dataset[int(row)] for row in self._order[start : start + self.batch_size]])

    def state_dict(self) -> dict[str, Any]:
        """The order of this epoch, and how many of its batches were taken."""
        return {"order": self._order, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; an epoch that was through is followed by a new one."""
        self._order, self._taken = state["order"], state["taken"]
        self._goes_on = self._taken < len(self)


def with_random_state(callbacks: list[Any]) -> list[Any]:
    """The callbacks, with the one that keeps the random states, in all trainings that are compared."""
    known = any(isinstance(callback, RestoreRandomState) for callback in callbacks)
    return callbacks if known else [*callbacks, RestoreRandomState()]


def shuffled(case: Case, callbacks: list[Any], *, stateful: bool) -> DataLoader[Any]:
    """The case's data in a drawn order."""
    plain = case.loader_for(callbacks)
    if stateful:
        return StatefulLoader(plain.dataset, batch_size=case.batch_size)
    return DataLoader(plain.dataset, batch_size=case.batch_size, shuffle=True)


def with_another_setting(callback: Any) -> Any:
    """A callback of the same class that keeps its state under another key, where one setting can do that."""
    placed = [m for value in vars(callback).values() for m in (value if isinstance(value, list) else [value])]
    owners = [callback, *(method for method in placed if isinstance(method, Method))]
    names = [p.name for p in inspect.signature(type(callback)).parameters.values()]
    settings = {name: next(getattr(o, name) for o in owners if hasattr(o, name)) for name in names}
    for name, value in settings.items():
        for new in _near(value):
            try:
                other = type(callback)(**{**settings, name: new})
            except (TypeError, ValueError):
                continue
            if other.state_key != callback.state_key:
                return other
    return callback


def _near(value: Any) -> Iterator[Any]:
    if isinstance(value, Method):
        settings = value.settings()
        for name, inner in settings.items():
            for new in _near(inner):
                try:
                    yield type(value)(**{**settings, name: new})
                except (TypeError, ValueError):
                    continue
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value * 0.5)


def saved(checkpoint: Path, root: Path) -> dict[str, Any]:
    """What a checkpoint holds of the training and of the plug-ins, with the training's directory taken out."""
    content = torch.load(checkpoint, weights_only=True)
    content["callbacks"] = {k: v for k, v in content["callbacks"].items() if not k.startswith("ModelCheckpoint")}
    plug_ins = content.keys() - {*OF_THE_TRAINING, "loops", "pytorch-lightning_version", "hparams_name"}
    kept = {key: content[key] for key in (*OF_THE_TRAINING, *sorted(plug_ins)) if key in content}
    return dict(_moved(kept, str(root.resolve())))


def files(root: Path, *, but: tuple[str, ...]) -> dict[str, Any]:
    """What lies in a directory, by path; torch's own files by content, since they also hold their name."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and name.parts[0] not in but:
            torchs = path.suffix in (".ckpt", ".pt", ".pth")
            content = torch.load(path, weights_only=True) if torchs else path.read_bytes()
            found[str(name)] = _moved(content, str(root.resolve()))
    return found


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two nested states differ first, to the bit; empty where they do not.

    >>> difference({"a": [torch.zeros(1), 2]}, {"a": [torch.zeros(1), 3]})
    '/a/1: 2, not 3'
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            return f"{where}: only in one of them, {sorted(map(str, a.keys() ^ b.keys()))}"
        return next(filter(None, (difference(a[key], b[key], f"{where}/{key}") for key in a)), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} values, not {len(b)}"
        return next(filter(None, (difference(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b)))), "")
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
        return "" if same else f"{where}: another tensor"
    return "" if repr(a) == repr(b) else f"{where}: {a!r}, not {b!r}"[:500]


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _moved(value: Any, root: str) -> Any:
    if isinstance(value, str):
        return value.replace(root, "")
    if isinstance(value, Mapping):
        return {_moved(key, root): _moved(inner, root) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(inner, root) for inner in value]
    return value
