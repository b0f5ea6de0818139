"""Spectral regularization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.kinds import Regularizer


def spectral_penalty(
    network: nn.Module, generator: torch.Generator | None = None, *, power: int = 2, iterations: int = 10
) -> Tensor:
    r"""Compute how far the largest singular value of each layer is from 1, and how long the biases are.

    .. math::
        \sum_l \left( \sigma_1(W_l)^k - 1 \right)^2 + \|b_l\|^{2k}

    over the linear layers and the convolutions. The kernel of a convolution is a matrix with a row for each filter.

    Args:
        network: the module whose layers are looked at.
        generator: what draws the vectors with which the power iterations begin; None draws from the global stream.
        power: :math:`k \ge 1`.
        iterations: how many power iterations find each singular value. Fewer find a value that is a bit too low.

    Returns:
        a number >= 0, float32 at least.

    Raises:
        ValueError: the network has no such layer, or a setting is out of its range.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]])), layer.bias.fill_(1.0)
        ...     spectral_penalty(layer)  # (9 - 1)² + 2²  # doctest: +ELLIPSIS
        (...)
        tensor(68.)

    Paper: Lewandowski et al., Learning Continually by Spectral Regularization, ICLR 2025,
    https://arxiv.org/abs/2406.06811. Not checked at the source: the default of the power, the term of the biases, and
    what the paper does with the scales of normalization layers, which this term leaves alone.

    Differs from the paper: the power iteration begins anew in each step, with more iterations, instead of one iteration
    from the vectors of the step before.
    """
    _check(power, iterations)
    terms = []
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            terms.append((_largest_singular_value(layer.weight.flatten(1), generator, iterations) ** power - 1) ** 2)
            if layer.bias is not None:
                terms.append(_wide(layer.bias).square().sum() ** power)
    if not terms:
        raise ValueError(
            f"{type(network).__name__} has no linear layer and no convolution, so there are no singular values. Leave "
            "this term out."
        )
    return torch.stack(terms).sum()


def _largest_singular_value(matrix: Tensor, generator: torch.Generator | None, iterations: int) -> Tensor:
    """Its gradient is exact where the vectors have converged, because they are stationary points of the value."""
    matrix = _wide(matrix)
    with torch.no_grad():
        right = torch.randn(matrix.shape[1], generator=generator).to(matrix, non_blocking=True)
        for _ in range(iterations):
            right = F.normalize(matrix.T @ F.normalize(matrix @ right, dim=0), dim=0)
    largest: Tensor = torch.linalg.vector_norm(matrix @ right)
    return largest


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check(power: int, iterations: int) -> None:
    for name, value in (("power", power), ("iterations", iterations)):
        if not value >= 1:
            raise ValueError(f"{name}={value} must be at least 1.")


class SpectralRegularizer(Regularizer):
    r"""Keeps a network trainable over many tasks: holds each layer's largest singular value near 1, as at the start.

    The term is that of :func:`spectral_penalty`, a sum over the layers.

    Args:
        power: :math:`k \ge 1`.
        iterations: how many power iterations find each singular value.

    Raises:
        ValueError: a setting out of its range.

    When to use: if one network learns from data that change with time, and learns ever more slowly. Choose the
    callback's ``strength`` on the first tasks; the paper finds the choice less delicate than that of weight decay.
    Cost: each layer's matrix is multiplied by 2 vectors in each iteration, whatever the batch.
    Interactions: leave out weight decay, which pulls the singular values to 0. Normalization behind a layer undoes the
    scale that the term sets. Transposed convolutions, embeddings and frozen layers get no gradient, but frozen layers
    count in the value.

    Example:
        >>> SpectralRegularizer()(nn.Linear(3, 3)).shape
        torch.Size([])
    """

    function = staticmethod(spectral_penalty)
    by_process = "each process begins its power iterations with draws of its own"
    family = "continual learning"
    coupled = "it is one number for the network, whatever the batch"

    def __init__(self, *, power: int = 2, iterations: int = 10) -> None:
        super().__init__()
        _check(power, iterations)
        self.power = power
        self.iterations = iterations

    def forward(self, network: nn.Module, generator: torch.Generator | None = None) -> Tensor:
        """The network -> a number."""
        return spectral_penalty(network, generator, power=self.power, iterations=self.iterations)
