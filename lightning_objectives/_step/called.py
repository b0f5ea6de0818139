"""The signals of a training step that come from the criterion's call."""

from typing import Any

from torch import Tensor

from lightning_objectives._step.batch import part_of, told_batch_size
from lightning_objectives._step.calls import Call
from lightning_objectives._step.rows import fold
from lightning_objectives._step.samples import Samples, Sizes
from lightning_objectives._step.signals import Signals


class CalledSignals(Signals):
    """The signals of one training step.

    Args:
        plan: the plan of the fit.
        batch: the user's batch.
        index: the index of the samples that came with the batch.
    """

    def __init__(self, plan: Any, batch: Any, index: Tensor | None) -> None:
        super().__init__(plan.module, batch, input=plan.option("input"), index=index)
        self.plan, self.trainer, self.providers = plan, plan.trainer, plan.providers
        self.call: Call | None = None
        """The criterion's call that the callbacks act on, changed by those before the weights."""
        self.user_call: Call | None = None
        """The same call, as the user's code made it."""
        self.counted: Tensor | None = None
        """Which elements count for the weights, if callbacks weight them."""
        self._part = part_of(batch, self.input)

    def samples(self, call: Call, elements: Tensor) -> Samples:
        """Which sample of the batch each element of the call belongs to."""
        sizes = Sizes.of(
            self._part, told_batch_size(self.module, self._part, self.plan.option("batch_size")), self.plan.loader_sizes
        )
        found: Samples = self.plan.finder.find(call, self.user_call or call, elements, sizes, self.plan.capture.trace)
        return found

    def _losses(self) -> Tensor:
        """(N,): for each sample the mean of the losses that count."""
        call = self._called("losses")
        return fold(call.elements, call.valid, self.samples(call, call.elements)).losses

    def _logits(self) -> Tensor:
        return self._called("logits").logits

    def _target(self) -> Tensor:
        return self._called("target").targets

    def _called(self, name: str) -> Call:
        if self.call is None:
            raise ValueError(
                f"The method asks for the signal {name!r} before the step has called its criterion, so there is none. "
                "Use a method that does not ask for it at this place."
            )
        return self.call
