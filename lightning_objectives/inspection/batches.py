"""Gets the first batch of a training's data, and gives it again to each trial."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from lightning_objectives._trainer.loaders import generators_of
from lightning_objectives._trainer.patch import Patch


class OneBatch:
    """Stands in for a data loader: gives its first batch, and answers what callbacks ask of a loader.

    Args:
        batch: the batch; whoever iterates gets a copy, because a step may write to it.
        loader: what the batch is of; None if that is unknown.
    """

    def __init__(self, batch: Any, loader: Any = None) -> None:
        self.batch = batch
        for name in ("batch_size", "sampler", "batch_sampler", "drop_last", "dataset"):
            if hasattr(loader, name):
                setattr(self, name, getattr(loader, name))

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield copy.deepcopy(self.batch)


def one_batch(loaders: Any) -> Any:
    """The same loader, or loaders, with one batch each.

    Raises:
        ValueError: a loader gives no batch.
    """
    if loaders is None or hasattr(loaders, "flattened"):  # A CombinedLoader of the user's own is read as it is.
        return loaders
    if isinstance(loaders, Mapping):
        return {name: one_batch(loader) for name, loader in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return [one_batch(loader) for loader in loaders]
    generators = generators_of(loaders)
    states = [generator.get_state() for generator in generators]
    try:
        for batch in loaders:
            return OneBatch(batch, loaders)
    finally:
        for generator, state in zip(generators, states):
            generator.set_state(state)
    raise ValueError(f"The {type(loaders).__name__} gives no batch, so there is no step to look at.")


class Data:
    """The data of all trials of one module: one batch of each loader, read once.

    Args:
        data: a batch, a data loader, a data module, or None for the loaders of the module itself.
    """

    def __init__(self, data: Any) -> None:
        self.brief: dict[str, Any] = {}
        """The loaders with one batch each, by the name of the hook that makes them."""
        self.datamodule: Any = None
        self.is_batch = False
        """Whether the user gave a batch alone, which may be none of a validation."""
        self.is_given = data is not None and not hasattr(data, "prepare_data")
        """Whether the loaders of the module itself are not needed."""
        if hasattr(data, "prepare_data"):
            self.datamodule = copy.copy(data)  # It is set up here, and the user's stays as it is.
            self.shorten(self.datamodule)
            for name in ("prepare_data", "setup"):
                Patch(self.datamodule, name, once)
            Patch(self.datamodule, "teardown", _nothing)
        elif isinstance(data, DataLoader):
            self.brief["train_dataloader"] = one_batch(data)
        elif data is not None:
            self.brief = dict.fromkeys(("train_dataloader", "val_dataloader"), OneBatch(data))
            self.is_batch = True

    def shorten(self, owner: Any) -> None:
        """Let a data module, or a module, give one batch of each of its loaders, and read them once."""
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            Patch(owner, name, partial(self._shortened, name))
        if self.is_given:
            Patch(owner, "prepare_data", _nothing)  # It may download what no loader is made of here.

    def _shortened(self, name: str, inner: Callable[[], Any]) -> Any:
        if name not in self.brief:
            self.brief[name] = one_batch(inner())
        return self.brief[name]

    def words(self, stage: str) -> dict[str, Any]:
        """The words of ``Trainer.fit``, or of ``Trainer.test``, for the data."""
        if stage == "test":
            known = [self.brief.get(f"{name}_dataloader") for name in ("test", "val", "train")]
            return {"dataloaders": next((loaders for loaders in known if loaders is not None), None)}
        if self.datamodule is not None:
            return {"datamodule": self.datamodule}
        return {f"{name}_dataloaders": self.brief.get(f"{name}_dataloader") for name in ("train", "val")}


def _nothing(inner: Any, *args: Any, **kwargs: Any) -> None:
    """Stands for a hook that is not needed."""


def once(inner: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a hook of a data module the first time that it is called with these arguments."""
    owner = inner.__self__
    done = vars(owner).setdefault("_done", set())
    key = inner.__name__, args, tuple(kwargs.items())
    if key not in done:
        done.add(key)
        inner(*args, **kwargs)
