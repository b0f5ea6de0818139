"""Adaptive sharpness-aware minimization (ASAM)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives.kinds import Perturbation
from lightning_objectives.perturbations._norms import total_norm
from lightning_objectives.shapes import check_tensors


def asam_offsets(
    gradients: Mapping[str, Tensor], params: Mapping[str, Tensor], *, rho: float = 0.5, eta: float = 0.01
) -> dict[str, Tensor]:
    r"""Compute the step up the loss that ASAM takes first, :math:`\rho\, T^2 g / (\|T g\| + 10^{-16})`.

    :math:`T = |w| + \eta` for the parameters whose name contains ``weight``, and 1 for the others, such as biases: a
    weight moves in proportion to its size. The norm is that of all gradients together, in float32 or wider.

    Args:
        gradients: of each parameter that has one, by name.
        params: the parameters, by name.
        rho: the length of the step, in the units of :math:`T^{-1} w`.
        eta: what is added to the size of each weight, so that a weight of 0 moves too.

    Returns:
        the offset of each parameter that has a gradient, by name.

    Raises:
        ValueError: a gradient of another shape than its parameter, or a negative or infinite setting.

    Example:
        >>> asam_offsets({"weight": torch.tensor([1.0, 1.0])}, {"weight": torch.tensor([3.0, -4.0])}, rho=0.5, eta=0.0)
        {'weight': tensor([0.9000, 1.6000])}

    Paper: Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
    Networks, ICML 2021, algorithm 1, https://arxiv.org/abs/2102.11600. The names are those of the authors' code.
    """
    _check(rho, eta)
    if not gradients:
        return {}
    check_tensors([params[name] for name in gradients], gradients=list(gradients.values()))
    sizes = {name: params[name].detach().abs().add_(eta) for name in gradients if "weight" in name}
    offsets = {name: gradient * sizes.get(name, 1.0) for name, gradient in gradients.items()}
    scale = rho / (total_norm(offsets.values()) + 1e-16)
    for name, offset in offsets.items():
        offset.mul_(scale.to(offset.device))
        if name in sizes:
            offset.mul_(sizes[name])
    return offsets


def _check(rho: float, eta: float) -> None:
    for name, value in (("rho", rho), ("eta", eta)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be finite and >= 0.")


class ASAM(Perturbation):
    """Looks for flat minima as SAM does, by a measure of flatness that a rescaling of the layers does not change.

    The offsets are those of :func:`asam_offsets`. If one layer is multiplied by k and the next divided by k, the
    network is the same, but SAM would move its weights differently; ASAM, up to ``eta``, does not.

    Args:
        rho: the length of the offset, relative to the sizes of the weights, >= 0; at 0 the training is the plain one.
        eta: what is added to the size of each weight, >= 0.

    Raises:
        ValueError: a negative or infinite setting.

    When to use: where SAM is used. ``rho`` is about ten times as large as there. The defaults are those of the authors'
    code.
    Cost: that of SAM, and a copy of the sizes of the weights while the offsets are computed.
    Interactions: those of SAM.

    Example:
        >>> ASAM(eta=0.0).offsets({"weight": torch.tensor([1.0, 1.0])}, {"weight": torch.tensor([3.0, -4.0])})
        {'weight': tensor([0.9000, 1.6000])}

    Paper: see :func:`asam_offsets`.
    """

    exemplar = True
    function = staticmethod(asam_offsets)
    by_process = "each process moves its weights by the gradient of its own rows"

    def __init__(self, *, rho: float = 0.5, eta: float = 0.01) -> None:
        _check(rho, eta)
        self.rho = rho
        self.eta = eta

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
        return asam_offsets(gradients, params, rho=self.rho, eta=self.eta)
