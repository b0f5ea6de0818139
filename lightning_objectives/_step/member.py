"""The base class of all callbacks of the step: what the engine asks of them, with answers that change nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._step.calls import Call

PLACES = ("transform", "head", "loss", "weighting", "term", "combination", "perturbation", "reference")
"""The places of a step, in order; a new one comes last, because the numbers of the places seed the draws."""
CHAINED = ("transform", "weighting", "term")
"""The places that take several callbacks: transforms in the order of the Trainer's list, weightings as their product,
terms as their sum."""
CHANGES = ("transform", "head", "loss", "weighting")
"""The places that change the criterion's value."""


class Member:
    """A callback that acts in the training step.

    ``step`` is the running :class:`~lightning_objectives._step.step.Step`, ``plan`` the plan of the fit.
    """

    place: ClassVar[str]

    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    input: str | int | None = None
    batch_size: int | str | None = None
    sample_dim: int | None = None
    criteria: bool | Sequence[str] = False
    """Whether it combines the step's own criteria: torch's own, or also those with these paths."""

    @property
    def method(self) -> Callable[..., Any]:
        """The method that it places in the step."""
        raise NotImplementedError(f"{type(self).__name__} places no method.")

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of the signals that the engine must have for it."""
        return ()

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of the sizes with which the method builds parts of its own."""
        return ()

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return type(self).__name__

    def signal(self, name: str, step: Any) -> Any:
        """One signal of this step."""
        return step.get(name)

    @property
    def needs_samples(self) -> bool:
        """Whether it must know which losses belong to one sample."""
        return not {"losses", "reference_losses"}.isdisjoint(self.signals)

    def active(self, step: int) -> bool:
        """Whether it changes anything at this optimizer step."""
        return True

    def check(self, call: Call) -> None:
        """Refuse a criterion that the method is not for, at the first batch."""

    def build(self, plan: Any, head: nn.Module | None) -> None:
        """Build what depends on the network's head, before the extra modules are added."""

    def start(self, plan: Any) -> None:
        """Take what is needed of the module as it is before the first step, a search's for the learning rate too."""

    def finish_batch(self, of_batch: Mapping[Any, Any]) -> None:
        """Write what a batch has taught, after all passes over it."""

    def perturbed(self, run: Callable[[], Any], plan: Any) -> Any:
        """The output of the whole step; ``run`` runs it at the weights of that moment."""
        return run()

    def transformed(self, step: Any) -> Any:
        """The batch for the user's step."""
        return step.batch

    def stacks(self, signals: Mapping[str, Any]) -> Tensor:
        """The stacks (M, N, ...) in place of the head's output."""
        head: Callable[..., Tensor] = signals["head"]
        return head(signals["features"])[None]

    def rewrite(self, call: Call, step: Any) -> Call:
        """The criterion's call with another target or another loss."""
        return call

    def weigh(self, call: Call, elements: Tensor, valid: Tensor | None, step: Any) -> Tensor:
        """The weights of the elements of a call, in their shape."""
        return torch.ones_like(elements)

    def term(self, step: Any) -> Tensor | None:
        """A scalar to add to the loss."""
        return None

    def combine(self, terms: Sequence[Tensor], step: Any) -> Tensor:
        """The loss that stands for all terms."""
        return torch.stack(list(terms)).sum()
