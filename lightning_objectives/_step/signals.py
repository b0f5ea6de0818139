"""Computes the signals of one training step from the batch, the criterion's call and the Trainer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._step.batch import inputs_of
from lightning_objectives._step.rows import Rows
from lightning_objectives.signals import signals_from

_PROVIDERS = dict.fromkeys(signals_from("reference"), "Refer(), the callback")
"""Which callback provides a signal."""


class Signals:
    """The signals of one step; each is computed when a method first asks for it.

    Args:
        module: the LightningModule; what it answers by a mixin comes before what the batch says.
        batch: the user's batch.
        input: the path of the network's inputs in the batch.
        index: the index of the samples that came with the batch.
    """

    providers: Mapping[str, Callable[[Any], Any]] = {}
    """The functions that compute the signals that neither the batch nor the module gives, by name."""

    def __init__(self, module: Any, batch: Any, *, input: str | int | None = None, index: Tensor | None = None) -> None:
        self.module, self.batch, self.input, self.index = module, batch, input, index
        self.values: dict[str, Any] = {}
        """The signals that are known already."""

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
                    f"not called the head or the criterion yet. Add {_PROVIDERS.get(name, 'the callback')} that "
                    "provides it, or use a method that does not ask for it."
                )
            self.values[name] = provider(self)
        return self.values[name]

    def row(self, name: str, rows: Rows) -> Tensor:
        """One signal, with the rows that count.

        Raises:
            ValueError: the signal has another number of rows than the losses.
        """
        if name == "losses":
            return rows.losses
        value: Tensor = self.get(name)
        if rows.kept is not None and len(value) == rows.total:
            value = value[rows.kept]
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
