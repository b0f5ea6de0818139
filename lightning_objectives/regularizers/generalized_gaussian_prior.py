"""A prior of the weights whose shape follows the weights."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_objectives.kinds import Regularizer

_SHAPES = (0.1, 3.0)
"""Between which shapes the authors' code looks."""
_HALVINGS = 30


def gaussian_shape(weights: Sequence[Tensor]) -> Tensor:
    r"""Estimate the shape of a generalized Gaussian distribution by its moments: 1 is Laplace, 2 is Gauss.

    .. math::
        n \frac{\sum_i \theta_i^2}{\left( \sum_i |\theta_i| \right)^2} =
        \frac{\Gamma(1/\nu)\, \Gamma(3/\nu)}{\Gamma(2/\nu)^2}

    Args:
        weights: tensors whose entries are taken together.

    Returns:
        a number without gradient, between 0.1 and 3, float32 at least; 3 if all entries are 0.

    Raises:
        ValueError: there are no weights.

    Example:
        >>> gaussian_shape([torch.randn(100_000, generator=torch.Generator().manual_seed(0))]).round(decimals=1)
        tensor(2.)
    """
    count = sum(w.numel() for w in weights)
    if not count:
        raise ValueError("weights=[] hold no number, but the shape needs some: pass the weights of a network.")
    values = [_wide(w).detach() for w in weights]
    sizes, squares = (torch.stack(sums).sum() for sums in zip(*((v.abs().sum(), v.square().sum()) for v in values)))
    ratio = squares / sizes * (count / sizes)
    low, high = (torch.full_like(ratio, end) for end in _SHAPES)
    for _ in range(_HALVINGS):
        shape = (low + high) / 2
        of_shape = ((1 / shape).lgamma() + (3 / shape).lgamma() - 2 * (2 / shape).lgamma()).exp()
        heavier = ratio > of_shape  # The ratio falls with the shape.
        low, high = torch.where(heavier, low, shape), torch.where(heavier, shape, high)
    return (low + high) / 2


def generalized_gaussian_prior(network: nn.Module, *, min_dims: int = 2) -> Tensor:
    r"""Compute a penalty on the sizes of the weights that is steep near 0 if most of them are small already.

    .. math::
        \frac{1}{n} \sum_{i=1}^{n} (|\theta_i| + 1)^\nu

    with the shape :math:`\nu` of :func:`gaussian_shape`, a constant for the gradient, which is
    :math:`\frac{\nu}{n} \operatorname{sign}(\theta_i) (|\theta_i| + 1)^{\nu - 1}`.

    Args:
        network: the module whose trained parameters are taken together.
        min_dims: parameters of fewer dimensions (biases, gains of norms) do not count.

    Returns:
        a number >= 1.

    Raises:
        ValueError: the network has no such parameter, or a negative ``min_dims``.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> layer.weight.data.fill_(0.5)  # All sizes are equal, so the shape is at its end, 3: 1.5³.
        tensor([[0.5000, 0.5000]])
        >>> generalized_gaussian_prior(layer).detach()
        tensor(3.3750)
    """
    _check(min_dims)
    weights = list(_weights(network, min_dims))
    if not weights:
        raise ValueError(
            f"{type(network).__name__} has no trained parameter of min_dims={min_dims} dimensions or more, so there "
            "must be others: lower min_dims."
        )
    shape = gaussian_shape(weights)
    total = torch.stack([(_wide(w).abs() + 1).pow(shape).sum() for w in weights]).sum()
    return total / sum(w.numel() for w in weights)


def _weights(network: nn.Module, min_dims: int) -> Iterator[Tensor]:
    return (p for p in network.parameters() if p.requires_grad and p.dim() >= min_dims)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _check(min_dims: int) -> None:
    if min_dims < 0:
        raise ValueError(f"min_dims={min_dims} must be >= 0; 0 takes every parameter.")


class GeneralizedGaussianPrior(Regularizer):
    r"""Draws weights to 0 as their own distribution suggests, for networks that shall be compressed afterwards.

    The term is that of :func:`generalized_gaussian_prior`. Its factor is the callback's ``strength``. The gradient is
    divided by the number of weights, so the strength must be large; choose one. The authors' code subtracts 2000 times
    this gradient from the weights themselves, after each step of the optimizer and without its learning rate.

    Args:
        min_dims: parameters of fewer dimensions (biases, gains of norms) do not count.

    Raises:
        ValueError: a negative ``min_dims``; in a training, a network without such parameters.

    When to use: before weights are quantized and coded, with some epochs of ordinary training afterwards
    (``stop_epoch``).
    Cost: three passes over the weights.
    Interactions: leave out weight decay, which it takes the place of. Adam scales the gradient of the term together
    with that of the loss.

    Example:
        >>> GeneralizedGaussianPrior()(torch.nn.Linear(3, 2)) > 1
        tensor(True)

    Paper: Wu et al., BackSlash: Rate Constrained Optimized Training of Large Language Models, 2025,
    https://arxiv.org/abs/2504.16968. The formula is that of the authors' code.

    Differs from the authors' code: the gradient goes through the optimizer. Not checked at the source: whether it
    counts biases and norms, as ``min_dims=0`` does.
    """

    function = staticmethod(generalized_gaussian_prior)
    family = "overfitting"
    coupled = "it is one number for the network, whatever the batch"

    def __init__(self, *, min_dims: int = 2) -> None:
        super().__init__()
        _check(min_dims)
        self.min_dims = min_dims

    def forward(self, network: nn.Module) -> Tensor:
        """The network -> a number."""
        return generalized_gaussian_prior(network, min_dims=self.min_dims)
