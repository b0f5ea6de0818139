"""Sharpness-aware minimization (SAM)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives.kinds import Perturbation
from lightning_objectives.perturbations._norms import scaled, total_norm
from lightning_objectives.shapes import check_tensors


def sam_offsets(
    gradients: Mapping[str, Tensor], params: Mapping[str, Tensor], *, rho: float = 0.05
) -> dict[str, Tensor]:
    r"""Compute the step up the loss that SAM takes first, :math:`\rho g / (\|g\| + 10^{-12})`.

    The norm is that of all gradients together, in float32 or wider.

    Args:
        gradients: of each parameter that has one, by name.
        params: the parameters, by name.
        rho: the length of the step, in the units of the weights.

    Returns:
        the offset of each parameter that has a gradient, by name.

    Raises:
        ValueError: a gradient of another shape than its parameter, or a negative or infinite ``rho``.

    Example:
        >>> sam_offsets({"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}, rho=0.5)
        {'w': tensor([0.3000, 0.4000])}

    Paper: Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, equation 2,
    https://arxiv.org/abs/2010.01412.
    """
    _check(rho)
    if not gradients:
        return {}
    check_tensors([params[name] for name in gradients], gradients=list(gradients.values()))
    scale = rho / (total_norm(gradients.values()) + 1e-12)
    return dict(zip(gradients, scaled(list(gradients.values()), scale)))


def _check(rho: float) -> None:
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho={rho} must be finite and >= 0; 0 moves nothing.")


class SAM(Perturbation):
    """Looks for flat minima, which generalize better, by the gradient at the worst weights nearby.

    The offsets are those of :func:`sam_offsets`: they lead up the loss, to its greatest value within ``rho`` if the
    loss were linear there. The step is taken from the weights as they were, with the gradient at the moved ones.

    Args:
        rho: the length of the offset of all weights together, >= 0; at 0 the training is the plain one.

    Raises:
        ValueError: a negative or infinite ``rho``.

    When to use: if the training loss is far below the validation loss, and twice the time is worth it. 0.05 is the
    paper's value; 0.01 to 0.5 are usual.
    Cost: two forward and backward passes in each step, and one copy of the weights during the second.
    Interactions: weight decay in the optimizer does not move the weights before the second pass. An average of the
    weights averages the weights that the optimizer makes, not the moved ones.

    Example:
        >>> SAM(rho=0.5).offsets({"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)})
        {'w': tensor([0.3000, 0.4000])}

    Paper: see :func:`sam_offsets`.

    Differs from the paper: its code adds the L2 penalty to the loss of both passes.
    """

    function = staticmethod(sam_offsets)
    by_process = "each process moves its weights by the gradient of its own rows, as in the paper's code"

    def __init__(self, *, rho: float = 0.05) -> None:
        _check(rho)
        self.rho = rho

    def active(self, *, step: int) -> bool:
        """Return False at ``rho=0``."""
        return self.rho > 0

    def offsets(
        self,
        gradients: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The step up the loss."""
        return sam_offsets(gradients, params, rho=self.rho)
