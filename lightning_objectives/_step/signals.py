"""What methods may ask for, made for one training step from the batch, the criterion's call and the Trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.batch import inputs_of
from lightning_objectives._step.criterion import Call
from lightning_objectives._step.rows import Rows

ROWS = frozenset({"features", "group", "index", "inputs", "logits", "losses", "reference_losses", "target"}) | {
    "teacher_features",
    "teacher_logits",
}
"""The signals that have one row a sample."""


@dataclass(eq=False)
class Signals:
    """The signals of one training step; each is made when it is first asked for."""

    module: Any
    """The LightningModule; a mixin's answers are asked of it first."""
    batch: Any
    input: str | int | None = None
    index: Tensor | None = None
    made: dict[str, Any] = field(default_factory=dict)
    """What other parts of the pipeline have provided: ``features``, ``head``, ``network``, ``teacher_logits``, ..."""
    makers: dict[str, Callable[["Signals"], Any]] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """One signal by name.

        Raises:
            ValueError: it cannot be had; the message says what to do.
        """
        if name not in self.made:
            if name in self.makers:
                self.made[name] = self.makers[name](self)
            else:
                self.made[name] = getattr(self, f"_{name}", lambda: self._missing(name))()
        return self.made[name]

    def take(self, call: Call) -> None:
        """Provide ``logits`` and ``target`` from the criterion's call, one row for each thing compared."""
        logits = call.rows(call.input)
        target = call.target.flatten() if call.indexed else call.rows(call.target)
        if call.function is nn.functional.binary_cross_entropy:
            logits = logits.logit()
        self.made |= {"logits": logits, "target": target}

    def row(self, name: str, rows: Rows) -> Tensor:
        """One signal, with the rows that count."""
        if name == "losses":
            return rows.losses
        value: Tensor = self.get(name)
        if rows.keep is not None:
            value = value[rows.keep] if len(value) == len(rows.keep) else value
        if len(value) != len(rows.losses):
            raise ValueError(
                f"The signal {name!r} has {len(value)} rows, but there are {len(rows.losses)} losses: it cannot be "
                "matched to them. Use the other unit ('sample' or 'element'), or a method that does not ask for it."
            )
        return value

    def _inputs(self) -> Tensor:
        answer = getattr(self.module, "objective_inputs", None)
        found = answer(self.batch) if answer is not None else None
        return found if isinstance(found, Tensor) else inputs_of(self.batch, self.input)

    def _index(self) -> Tensor:
        answer = getattr(self.module, "objective_index", None)
        found = answer(self.batch) if answer is not None else None
        if found is None:
            found = self.index
        if found is None:
            raise ValueError(
                "The signal 'index' is asked for, but the batch carries none: wrap the training set with "
                "lightning_objectives.data.with_index, or answer `objective_index(batch)` with the mixin."
            )
        return torch.as_tensor(found)

    def _group(self) -> Tensor:
        answer = getattr(self.module, "objective_group", None)
        found = answer(self.batch) if answer is not None else None
        if found is None and isinstance(self.batch, Mapping):
            found = self.batch.get("group")
        if found is None:
            raise ValueError(
                "The signal 'group' is asked for, but the batch has no key 'group': add it to the data set's items, or "
                "answer `objective_group(batch)` with the mixin."
            )
        return torch.as_tensor(found)

    def _missing(self, name: str) -> Any:
        raise ValueError(
            f"The signal {name!r} cannot be had here: no callback of this training provides it, or the criterion had "
            f"not been called when it was asked for."
        )
