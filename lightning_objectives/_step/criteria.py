"""The criteria of one step as the terms of its loss, each with the factor that the user's code gives it."""

from typing import Any

import torch
from torch import Tensor

_NONE = (
    "{user}.training_step computes its loss from no criterion that is seen, so there are no terms to combine. Torch's "
    "own criteria are seen, outside of compiled steps, on tensors that need a gradient."
)


class Criteria:
    """Splits a loss into factor times value for each criterion, and the rest.

    The user's code gets each value through a gate. When all factors are known, the gates are closed: the rest then has
    the gradient of all that does not go through a criterion, and no second pass through the network is needed for it.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        """The names of the criteria that are in the loss, in the order of their calls."""
        self.closed = False
        self._called: list[str] = []
        self._values: list[Tensor] = []
        self._gated: list[Tensor] = []

    def gated(self, name: str, value: Tensor) -> Tensor:
        """What the user's code gets for the value of a criterion."""
        self._called.append(name)
        self._values.append(value)
        self._gated.append(_Gate.apply(value, self))
        return self._gated[-1]

    def changed(self, before: Tensor, value: Tensor) -> Tensor:
        """Another value in place of one that the user's code got already, through a gate of its own."""
        number = next(number for number, gated in enumerate(self._gated) if gated is before)
        self._values[number], self._gated[number] = value, _Gate.apply(value, self)
        return self._gated[number]

    def split(self, loss: Tensor, user: str) -> tuple[list[Tensor], Tensor]:
        """The terms of the loss, and the rest of it. The sum of both is the loss.

        Raises:
            ValueError: no criterion is in the loss.
        """
        factors: tuple[Tensor | None, ...] = ()
        if self._gated and loss.requires_grad:
            factors = torch.autograd.grad(loss, self._gated, retain_graph=True, allow_unused=True)
        inside = [number for number, factor in enumerate(factors) if factor is not None]
        if not inside:
            raise ValueError(_NONE.format(user=user))
        terms = []
        for number in inside:
            factor, value = factors[number], self._values[number]
            assert factor is not None
            # An element that the user's code masks has the factor 0, and 0 * inf is NaN.
            terms.append(torch.where(factor == 0, 0.0, factor * value).sum())
        self.names = [self._called[number] for number in inside]
        self.closed = True
        return terms, loss - torch.stack([term.detach().to(loss) for term in terms]).sum()


class _Gate(torch.autograd.Function):
    """The identity, whose backward pass stops here once the criteria are closed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, criteria: Criteria) -> Tensor:
        ctx.criteria = criteria
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return (None if ctx.criteria.closed else grad), None
