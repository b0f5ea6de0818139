"""Replaces the model's criterion by another loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.calls import MEANS, Call, Derived
from lightning_objectives._step.chunks import by_rows
from lightning_objectives._step.named import SHOWN
from lightning_objectives._step.rows import COUNTED
from lightning_objectives._step.step import Step
from lightning_objectives.kinds import Loss
from lightning_objectives.signals import BY_ROW


@dataclass(eq=False)
class ReplaceLoss(StepCallback):
    """Replaces the model's criterion by another loss on the same logits and targets.

    Targets that the model's criterion ignores (``ignore_index``) stay ignored. Its class weights and its label
    smoothing no longer apply. ``reduction="mean"`` is the mean over the targets that count.

    On a GPU a step waits for the device in two cases. Targets are ignored: a method sees only the rows that count, and
    the device alone knows how many these are. The criterion is named: a named criterion shows only by its gradients
    what it makes of its rows, in each batch anew.

    Args:
        loss: the method, ``(logits, target) -> (N,)``.
    """

    kind = Loss
    place = "loss"
    waits: ClassVar = {
        "ignored_targets_on_a_gpu": {"losses_of": COUNTED},
        "a_named_criterion_on_a_gpu": {"valid": SHOWN, "reduction": SHOWN},
    }

    loss: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The loss."""
        return [self.loss]

    def rewrite(self, call: Call, step: Step) -> Call:
        """Replace the criterion of a call by the loss."""
        if getattr(self.loss, "unit", "row") == "sample":
            return self._of_samples(call, step)
        own = ("logits", "target", "memory", "memory_bank")
        asked = {name: self.signal(name, step) for name in self.signals if name not in own}
        memory = self._remembered(call, step, asked) if self.remembers else {}
        if "memory_bank" in self.signals:
            asked["memory_bank"] = self.memory_in(step).rows

        def losses_of(call: Call) -> Tensor:
            """The losses of the rows that count, 0 for the others."""
            own = {"logits": call.logits, "target": call.targets}
            kept = None if call.valid is None else call.valid.flatten().nonzero().squeeze(1)
            own |= {name: value for name, value in asked.items() if name in BY_ROW and len(value) == len(own["logits"])}
            rows = {name: self.adapted(name, value, call) for name, value in own.items() if name in self.signals}
            others = {n: value for n, value in asked.items() if n not in rows}
            if "memory" in self.signals:
                others["memory"] = memory if kept is None else {n: value[kept] for n, value in memory.items()}
            losses = by_rows(self.loss, rows, others, kept)
            if "logits" not in self.signals:  # DDP waits for a gradient of each parameter that made them.
                losses = losses + torch.nan_to_num(own["logits"] * 0).sum()
            return losses if kept is None else losses.new_zeros(len(own["logits"])).index_copy(0, kept, losses)

        return Replaced(call, losses_of)

    def _remembered(self, call: Call, step: Step, asked: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the loss remembers of the rows of a call; it learns from those of them that count.

        Raises:
            ValueError: the call does not compare one row for each sample.
        """
        index, logits = step.get("index"), call.logits.detach()
        if len(index) != len(logits):
            raise ValueError(
                f"{self.loss} remembers each sample, but the criterion compares {len(logits)} rows of {len(index)} "
                "samples. Use it where each sample is one row."
            )
        memory = self.memory_in(step, logits.shape[1]).of(index)
        if not step.plan.verified:
            step.of_batch.pop((self, "learned"), None)  # The call before this one was a metric.
        kept = slice(None) if call.valid is None else call.valid.flatten().nonzero().squeeze(1)
        rows = {"logits": logits, "target": call.targets, "index": index, **memory}
        rows = {name: value[kept] for name, value in rows.items()}
        of_rows = {name: self.adapted(name, rows[name], call) for name in ("logits", "target")}
        remembered = {name: rows[name] for name in memory}
        self.learn(step, {**asked, **of_rows, "index": rows["index"], "memory": remembered})
        return memory

    @staticmethod
    def _lie_whole(call: Call, step: Step) -> bool:
        """Whether the first dimension of what a call compares counts the samples."""
        samples = step.samples(call, call.on(lambda tensor: tensor.detach()).elements)
        if samples.ids is None:
            return True
        ids = samples.ids.flatten(1) if samples.ids.dim() > 1 else samples.ids[:, None]
        return len(ids) == samples.count and bool((ids == torch.arange(len(ids), device=ids.device)[:, None]).all())

    @property
    def needs_samples(self) -> bool:
        """Whether it must know which losses belong to one sample."""
        return super().needs_samples or getattr(self.loss, "unit", "row") == "sample"

    def _of_samples(self, call: Call, step: Step) -> Call:
        """Replace the criterion by a loss of whole samples.

        Raises:
            ValueError: the samples do not lie whole along the first dimension, or the user's code reduces the losses.
        """
        whole = f"{self.loss} compares whole samples"
        compares = f"the criterion compares {tuple(call.input.shape)} with {tuple(call.target.shape)}"
        if not call.is_reduced:
            raise ValueError(
                f"{whole}, so it has one value for each, but your code reduces the losses of single positions itself "
                f"({compares}). Let the criterion reduce them."
            )
        if not step.plan.verified and not self._lie_whole(call, step):
            raise ValueError(
                f"{whole}, but {compares}, in which their positions lie in rows of their own. Let your step pass "
                "logits of the shape (N, C, ...) to its criterion."
            )
        asked = {n: self.signal(n, step) for n in self.signals if n not in ("logits", "target", "mask")}

        def losses_of(call: Call) -> Tensor:
            logits, target, valid = call.input, call.target, call.valid
            logits = logits.logit() if call.probabilities else logits
            if logits.dim() == 1:
                logits, target = logits[:, None], target[:, None]
            shape = (len(logits), *logits.shape[2:])
            mask = torch.ones(shape, dtype=torch.bool, device=logits.device) if valid is None else valid.reshape(shape)
            own = {"logits": logits, "target": target, "mask": mask}
            if "reference_logits" in asked:  # They come as rows, one for each position.
                own["reference_logits"] = asked["reference_logits"].reshape(*shape, -1).movedim(-1, 1)
            own |= {name: value for name, value in asked.items() if name in BY_ROW and name not in own}
            rows = {name: self.adapted(name, own[name], call) for name in own if name in self.signals}
            return by_rows(self.loss, rows, {name: value for name, value in asked.items() if name not in own})

        return OfSamples(call, losses_of)


class Replaced(Derived):
    """A call of a criterion with other losses in place of its own.

    Args:
        call: the user's call.
        losses_of: computes the losses (rows,) of what a call compares.
    """

    def __init__(self, call: Call, losses_of: Callable[[Call], Tensor]) -> None:
        super().__init__(call)
        self.losses_of = losses_of
        self._reduction = call.reduction  # It must be known, also of a named criterion.

    @property
    def by_class(self) -> bool:  # type: ignore[override]  # an attribute that is computed
        """Whether there are several columns: all of them have one loss."""
        return self.input.dim() > 1  # type: ignore[no-any-return]  # of the first call

    @property
    def class_dim(self) -> int:  # type: ignore[override]
        """The dimension of the columns."""
        return self.first.class_dim or 1 if self.first.by_class else 1

    @property
    def divides(self) -> bool:
        """Whether the mean of the losses is taken."""
        return self._reduction in MEANS

    def value(self) -> Tensor:
        """The losses, reduced as the user's criterion reduces its own."""
        if not self.is_reduced:
            return self.elements
        return self.elements.sum() / self.divisor if self.divides else self.elements.sum()

    @cached_property
    def elements(self) -> Tensor:
        """The unreduced losses, one for each row of the input."""
        shape = list(self.input.shape)
        if len(shape) > 1:
            del shape[self.class_dim]
        return self.losses_of(self.first).reshape(shape)

    @property
    def parts(self) -> Tensor | None:
        """What each row adds to the divisor of a mean: 1 if it counts."""
        return self.first.valid

    @property
    def divisor(self) -> Tensor | int:
        """What a mean divides by."""
        if self._reduction == "batchmean":
            return len(self.input)
        return self.elements.numel() if self.parts is None else self.parts.sum()

    def on(self, substitute: Callable[[Tensor], Tensor]) -> "Replaced":
        """The same call with other tensors."""
        return Replaced(self.first.on(substitute), self.losses_of)

    def with_targets_of(self, rows: Tensor) -> "Replaced":
        """The same call with the targets of other rows."""
        return Replaced(self.first.with_targets_of(rows), self.losses_of)


class OfSamples(Replaced):
    """A call of a criterion with one loss for each sample in place of its own."""

    by_class = False

    @cached_property
    def elements(self) -> Tensor:
        """(N,) losses; 0 for a sample in which no position counts."""
        losses = self.losses_of(self.first)
        return losses if self.valid is None else torch.where(self.valid, losses, 0.0)

    @property
    def valid(self) -> Tensor | None:
        """(N,) which samples have a position that counts."""
        positions = self.first.valid
        return None if positions is None else positions.reshape(len(positions), -1).any(1)

    counted = valid
    parts = valid

    def on(self, substitute: Callable[[Tensor], Tensor]) -> "OfSamples":
        """The same call with other tensors."""
        return OfSamples(self.first.on(substitute), self.losses_of)

    def with_targets_of(self, rows: Tensor) -> "OfSamples":
        """The same call with the targets of other rows."""
        return OfSamples(self.first.with_targets_of(rows), self.losses_of)
