"""Measures how much the loss rises around the weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._files.names import plainly_named
from lightning_objectives._step.compiled import is_compiled
from lightning_objectives._step.passes import MovedWeights
from lightning_objectives.kinds import Perturbation

_WIDE = torch.float64


def sharpness(
    perturbation: Perturbation,
    network: nn.Module,
    batches: Iterable[Any],
    losses: Callable[[Any], Tensor],
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Measure how flat the minimum is that a training has found: how much the mean loss rises at moved weights.

    .. math::
        L(w + \epsilon) - L(w), \quad L(w) = \tfrac{1}{N} \textstyle\sum_n \ell_n(w)

    The perturbation gives :math:`\epsilon`. With ``SAM(rho=...)`` it is the step of the length :math:`\rho` up the
    gradient of L, with ``ASAM(rho=...)`` a step that is the same for networks that differ by a scale of their weights
    alone, and with ``WeightNoise(rho=...)`` noise of the standard deviation :math:`\rho`, for which the mean over the
    draws is about :math:`\rho^2 / 2` times the trace of the Hessian.

    L is over all rows of the batches, and so is its gradient: the value does not depend on how the rows are split. The
    network is in evaluation mode meanwhile. Weights, gradients, modes and buffers are then as before, to the bit.

    Args:
        perturbation: the method.
        network: the network itself, not what DDP wraps it in.
        batches: read two times or more, so a list or a loader that does not shuffle or augment.
        losses: computes the losses of a batch, (N,) or of any shape, without reducing them. Leave weight decay out.
        draws: how many draws to take the mean over, if the perturbation draws.
        generator: what the perturbation draws from; the global random stream by default.

    Returns:
        () float64 on the device of the losses; 0 where the gradient is zero.

    Raises:
        ValueError: no rows, other rows in the second pass, losses that are reduced or need no gradient, or ``draws``
            below 1, or above 1 for a perturbation that goes up the gradient, which draws nothing.

    When to use: to compare minima of one architecture on the same rows, such as with and without ``PerturbWeights``,
    averaging, or another batch size. 1,000 to 10,000 training samples are enough.
    Cost: a forward pass over the batches, another for each draw, and a backward pass for ``SAM`` and ``ASAM``.
    Interactions: only ``ASAM`` is fair between networks whose weights differ in scale, as those of networks with
    BatchNorm do. In several processes each measures its own rows.

    Example:
        >>> from lightning_objectives.perturbations import SAM
        >>> network = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(network.weight)
        >>> rows = [torch.eye(2)]
        >>> value = sharpness(SAM(rho=0.1), network, rows, lambda x: network(x).square() * torch.tensor([[4.0], [1.0]]))
        >>> round(value.item(), 4)  # L = 2 a² + b² / 2 at (1, 1): the gradient is (4, 1)
        0.4314

    Paper: Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021,
    https://arxiv.org/abs/2010.01412; Kwon et al., ASAM, ICML 2021, https://arxiv.org/abs/2102.11600.

    Differs from the papers: they take the gradient of one batch, as a training does; here it is that of all rows.
    """
    _check(perturbation, draws)
    params = {name: p for name, p in plainly_named(network.named_parameters()) if p.requires_grad}
    in_place = any(map(is_compiled, network.modules()))
    modes = {part: part.training for part in network.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        network.eval()
        gradients: dict[str, Tensor] = {}
        if perturbation.uses_gradients:
            total, rows = _summed(batches, losses, params, gradients)
            gradients = {name: gradient / rows for name, gradient in gradients.items()}
        else:
            total, rows = _summed(batches, losses)
        rises = []
        for _ in range(draws):
            with torch.no_grad():
                offsets = perturbation.offsets(gradients, params, generator=generator)
                moved = MovedWeights(params, offsets, in_place=in_place)
            try:
                there, again = _summed(batches, losses)
            finally:
                moved.restore()
            if again != rows:
                raise ValueError(
                    f"batches has {rows} losses in the first pass, but {again} in the next, so the two cannot be "
                    "compared. Give a list of batches, or a loader that gives the same rows each time."
                )
            rises.append((there - total) / rows)
        return torch.stack(rises).mean()
    finally:
        for part, mode in modes.items():
            part.training = mode
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)


def _check(perturbation: Perturbation, draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws={draws} must be >= 1.")
    if draws > 1 and perturbation.uses_gradients:
        raise ValueError(f"draws={draws}, but {perturbation} goes up the gradient and draws nothing: leave draws out.")


def _summed(
    batches: Iterable[Any],
    losses: Callable[[Any], Tensor],
    params: dict[str, nn.Parameter] | None = None,
    gradients: dict[str, Tensor] | None = None,
) -> tuple[Tensor, int]:
    """The sum of all losses and their number; the gradients of the sum are added to ``gradients``."""
    total, rows = None, 0
    for batch in batches:
        with torch.set_grad_enabled(gradients is not None):
            found = losses(batch)
            if not isinstance(found, Tensor) or not found.dim():
                raise ValueError(f'losses(batch) must return one loss for each row, not {found}: use reduction="none".')
            value = found.sum()
        if params is not None and gradients is not None:
            if not found.requires_grad:
                raise ValueError("losses(batch) returned losses that need no gradient: let it call the network itself.")
            new = torch.autograd.grad(value, list(params.values()), allow_unused=True)
            for name, gradient in zip(params, new):
                if gradient is not None:
                    gradients[name] = gradients[name] + gradient if name in gradients else gradient
        wide = found.detach().sum(dtype=_WIDE)
        total, rows = wide if total is None else total + wide, rows + found.numel()
    if total is None or not rows:
        raise ValueError("batches gives no rows, or none a second time: give a list of batches, or a loader.")
    return total, rows
