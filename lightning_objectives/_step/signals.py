"""Computes the signals of one training step from the batch, the criterion's call and the Trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.batch import inputs_of
from lightning_objectives._step.criterion import Call
from lightning_objectives._step.rows import Rows


@dataclass(eq=False)
class Signals:
    """The signals of one training step; each is computed when a method first asks for it."""

    module: Any
    """The LightningModule; what it answers by a mixin comes before what the batch says."""
    batch: Any
    input: str | int | None = None
    index: Tensor | None = None
    values: dict[str, Any] = field(default_factory=dict)
    """The signals that are known already; the pipeline adds those of the head and of the criterion."""
    providers: dict[str, Callable[["Signals"], Any]] = field(default_factory=dict)
    """The functions that compute the signals that neither the batch nor the criterion gives, by name."""

    def get(self, name: str) -> Any:
        """One signal by name.

        Raises:
            ValueError: the signal is missing; the message says what to do.
        """
        if name not in self.values:
            provider = self.providers.get(name) or getattr(type(self), f"_{name}", None)
            if provider is None:
                raise ValueError(
                    f"The signal {name!r} is not available: no callback of this training provides it, or the step has "
                    "not called the criterion yet. Add the callback that provides it, or use a method that does not "
                    "ask for it."
                )
            self.values[name] = provider(self)
        return self.values[name]

    def add_call(self, call: Call) -> None:
        """Add ``logits`` and ``target`` from the criterion's call, one row for each comparison."""
        logits = _table(call.rows(call.input))
        target = call.target.flatten() if call.indexed else _table(call.rows(call.target))
        if call.function is nn.functional.binary_cross_entropy:
            logits = logits.logit()
        self.values |= {"logits": logits, "target": target}

    def row(self, name: str, rows: Rows) -> Tensor:
        """One signal, with the rows that count.

        Raises:
            ValueError: the signal has another number of rows than the losses.
        """
        if name == "losses":
            return rows.losses
        value: Tensor = self.get(name)
        if rows.keep is not None and len(value) == len(rows.keep):
            value = value[rows.keep]
        if len(value) != len(rows.losses):
            raise ValueError(
                f"The signal {name!r} has {len(value)} rows, but there are {len(rows.losses)} losses, so the two "
                "cannot be matched. Use the other unit ('sample' or 'element'), or a method that does not ask for it."
            )
        return value

    def _answer(self, name: str) -> Any:
        """What the module answers by a mixin's ``objective_<name>(batch)``; None if it does not answer."""
        answer = getattr(self.module, f"objective_{name}", None)
        return answer(self.batch) if answer is not None else None

    def _inputs(self) -> Tensor:
        inputs = self._answer("inputs")
        return inputs if isinstance(inputs, Tensor) else inputs_of(self.batch, self.input)

    def _index(self) -> Tensor:
        index = self._answer("index")
        index = self.index if index is None else index
        if index is None:
            raise ValueError(
                "The method asks for the signal 'index', but the batch has none. Wrap the training set with "
                "lightning_objectives.data.with_index, or answer `objective_index(batch)` with the mixin."
            )
        return torch.as_tensor(index)

    def _group(self) -> Tensor:
        group = self._answer("group")
        if group is None and isinstance(self.batch, Mapping):
            group = self.batch.get("group")
        if group is None:
            raise ValueError(
                "The method asks for the signal 'group', but the batch has no key 'group'. Add the key to the items of "
                "the data set, or answer `objective_group(batch)` with the mixin."
            )
        return torch.as_tensor(group)


def _table(values: Tensor) -> Tensor:
    """(N,) or (N, C, ...) values of a criterion that compares element with element -> (rows, C), as methods expect."""
    if values.dim() == 1:
        return values[:, None]
    return values.movedim(1, -1).flatten(0, -2) if values.dim() > 2 else values
