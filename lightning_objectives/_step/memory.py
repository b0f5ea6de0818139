"""Keeps what a method remembers of each sample of the data set, by the sample's index."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import Subset

from lightning_objectives._trainer.random import mixed_seed
from lightning_objectives._trainer.ranks import gather_rows
from lightning_objectives.data.with_index import WithIndex

_TELL = "Say samples=, the number of samples in the whole data set."


class Memory:
    """The rows of all samples for one method: float32 tensors (samples, ...) on the module's device.

    Args:
        method: the method that remembers.
        samples: the number of samples in the data set.
        classes: C, for rows that have one number for each class; None if it is unknown.
        device: where the rows lie.
        saved: the rows in the checkpoint that the training resumes, by name; empty in a new training.
        seed: the seed of rows that begin with random numbers, the same on every rank.

    Raises:
        ValueError: C is needed but unknown, or the checkpoint is of another data set.
    """

    def __init__(
        self,
        method: Any,
        samples: int,
        *,
        classes: int | None,
        device: torch.device,
        saved: Mapping[str, Tensor],
        seed: int = 0,
    ) -> None:
        self.method = method
        self.samples = samples
        self._rows: dict[str, Tensor] = {}
        self._unwritten: tuple[Tensor, dict[str, Tensor]] | None = None
        generator = torch.Generator().manual_seed(mixed_seed(seed, samples))
        for name, row in method.remembers.items():
            if "C" in row.shape and classes is None:
                raise ValueError(
                    f"{method} remembers a number for each class, but the step has not compared any logits yet."
                )
            shape = (samples, *(classes if size == "C" else size for size in row.shape))
            rows = torch.full(shape, row.initial, device=device)  # type: ignore[arg-type]  # no None is left
            if row.spread and not saved:
                # Drawn on the CPU, so that the same seed gives the same rows on every device.
                rows += (row.spread * (2 * torch.rand(rows.shape, generator=generator) - 1)).to(device)
            self._rows[name] = rows
        if saved:
            self.load(saved)
        taken = sum(rows.nbytes for rows in self.rows.values()) / 1e6
        shapes = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in self.rows.items())
        rank_zero_info(f"{method} remembers {shapes}: {taken:.3g} MB on {device}, and in each checkpoint.")

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows of all samples, by name."""
        if self._unwritten is not None:
            index, learned = self._unwritten
            for name, rows in learned.items():
                self._rows[name][index] = rows
            self._unwritten = None
        return self._rows

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Go on with the rows of a checkpoint.

        Raises:
            ValueError: they are of another method or another data set; nothing is loaded then.
        """
        if saved.keys() != self.rows.keys():
            raise ValueError(
                f"The checkpoint holds {sorted(saved)}, but {self.method} remembers {sorted(self.rows)}. Resume with "
                "the method that was saved."
            )
        for name, rows in self.rows.items():
            if saved[name].shape != rows.shape:
                raise ValueError(
                    f"The checkpoint holds {name!r} of {self.method} in the shape {tuple(saved[name].shape)}, but this "
                    f"training needs {tuple(rows.shape)}: it is of another data set. Resume with the data set as it "
                    "was."
                )
        for name, rows in self.rows.items():
            rows.copy_(saved[name])

    def of(self, index: Tensor) -> dict[str, Tensor]:
        """The rows of some samples.

        Raises:
            ValueError: an index is not below the number of samples.
        """
        self._check(index)
        return {name: rows[index] for name, rows in self.rows.items()}

    def write(self, index: Tensor, learned: Mapping[str, Tensor]) -> None:
        """Write rows of the samples of all ranks; of a sample that comes several times, the first row.

        They are written when the rows are read the next time, because the backward pass, which is still to come, may
        need the rows as they were.

        Raises:
            ValueError: the rows do not have the names or the shapes that the method declares.
        """
        if learned.keys() != self.rows.keys():
            raise ValueError(
                f"{self.method}.learn returned {sorted(learned)}, but it remembers {sorted(self.rows)}. It must return "
                "rows for each of these names."
            )
        for name, rows in learned.items():
            shape = (len(index), *self.rows[name].shape[1:])
            if rows.shape != shape:
                raise ValueError(
                    f"{self.method}.learn returned {name!r} of the shape {tuple(rows.shape)} for {len(index)} samples. "
                    f"It must have the shape {shape}."
                )
        first = first_of_equals(index)
        rows_of = {name: rows.detach().to(self.rows[name].dtype)[first] for name, rows in learned.items()}
        self._unwritten = index, rows_of

    def _check(self, index: Tensor) -> None:
        if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.samples:
            raise ValueError(
                f"The index of a sample is {int(index.max())}, but {self.method} remembers {self.samples} samples. "
                f"{_TELL}"
            )


def first_of_equals(index: Tensor) -> Tensor:
    """For each entry the position of the first entry that is equal to it, without a wait for the device.

    >>> first_of_equals(torch.tensor([7, 3, 7, 3, 9]))
    tensor([0, 1, 0, 1, 4])
    """
    values, order = index.sort(stable=True)
    begins = torch.ones_like(values, dtype=torch.bool)
    begins[1:] = values[1:] != values[:-1]
    places = torch.arange(len(values), device=index.device)
    starts = torch.where(begins, places, 0).cummax(0).values if len(values) else places
    return torch.empty_like(order).scatter(0, order, order[starts])


def samples_in(loaders: Any) -> int:
    """The number of samples in the data set of a training, as ``with_index`` numbers them.

    Raises:
        ValueError: it is unknown.
    """
    dataset = getattr(loaders, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if not isinstance(dataset, WithIndex):
        raise ValueError(
            f"The training's data set, {type(dataset).__name__}, does not show how many samples it has, which a method "
            f"that remembers each of them must know. {_TELL} Or wrap the data set with "
            "lightning_objectives.data.with_index."
        )
    return len(dataset)


def joined_rows(index: Tensor, learned: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What the samples of all ranks have taught."""
    (every, *rows), _ = gather_rows([index, *learned.values()])
    return every, dict(zip(learned, rows))
