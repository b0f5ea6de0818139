"""Mixup."""

import numpy as np
import torch
from torch import Tensor

from lightning_objectives.kinds import BatchTransform
from lightning_objectives.shapes import check_shapes, forms

PARTNER = {"partner": forms("(N,) int")}
"""The form of the partners of the rows."""


def mixup(inputs: Tensor, partner: Tensor, share: float) -> Tensor:
    r"""Mix each input with that of its partner: :math:`\lambda x_i + (1 - \lambda) x_{j(i)}`.

    Args:
        inputs: (N, ...) float.
        partner: (N,) int, :math:`j`.
        share: :math:`\lambda` in [0, 1], the part of each input that is kept.

    Returns:
        (N, ...) new inputs.

    Raises:
        ValueError: there is not one partner for each input, or the share is outside [0, 1].
        ValueError: the inputs are whole numbers, such as tokens, which cannot be mixed.

    Example:
        >>> mixup(torch.tensor([[0.0], [4.0]]), torch.tensor([1, 0]), 0.75)
        tensor([[1.],
                [3.]])
    """
    check_shapes(PARTNER, inputs=inputs, partner=partner)
    check_share(share)
    if not inputs.is_floating_point():
        raise ValueError(
            f"inputs of {inputs.dtype} cannot be mixed: a mean of two whole numbers, such as tokens, means nothing. "
            "Pass numbers that may be averaged, such as scaled images, for example by naming them with input=."
        )
    return inputs * share + inputs[partner.long()] * (1 - share)


def check_share(share: float) -> None:
    """Raise an error if a share is outside [0, 1].

    >>> check_share(0.5)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be in [0, 1]: it is the part of each input that is kept.")


def draw_share(alpha: float, generator: torch.Generator) -> float:
    r"""Draw :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`.

    >>> 0 < draw_share(1.0, torch.Generator().manual_seed(0)) < 1
    True
    """
    # NumPy draws, because torch's own beta distribution takes no generator.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def mixed_labels(partner: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Build the ``index`` (N, 2) and ``weight`` (N, 2) of rows that keep a share of their own label.

    >>> mixed_labels(torch.tensor([1, 0]), 0.75)
    (tensor([[0, 1],
             [1, 0]]), tensor([[0.7500, 0.2500],
                               [0.7500, 0.2500]]))
    """
    index = torch.stack([torch.arange(len(partner), device=partner.device), partner], dim=1)
    shares = torch.tensor([share, 1 - share]).to(partner.device, non_blocking=True)
    return index, shares.expand(len(partner), 2)


def check_mixing(alphas: dict[str, float], prob: float) -> None:
    """Raise an error if a setting of a mixture is outside its range.

    >>> check_mixing({"alpha": 0.0}, 1.0)
    Traceback (most recent call last):
        ...
    ValueError: alpha=0.0 must be > 0 and finite; for no mixing at all use prob=0.
    """
    for name, value in alphas.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be > 0 and finite; for no mixing at all use prob=0.")
    if not 0 <= prob <= 1:
        raise ValueError(f"prob={prob} must be in [0, 1].")


class Mixup(BatchTransform):
    r"""Regularizes training: mixes each sample of a batch with another one, inputs and labels in the same shares.

    The inputs are mixed by :func:`mixup`. Each batch draws one :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`, as
    in the paper's code and in timm's ``mode="batch"``.

    Args:
        alpha: :math:`\alpha > 0`; small values mix little. 0.2 for ResNets on ImageNet, 0.8 for ViTs, 1 for CIFAR.
        prob: the probability that a batch is mixed.

    Raises:
        ValueError: a setting outside its range.

    When to use: in long trainings of large networks.
    Cost: one pass over the inputs.
    Interactions: the criterion compares each sample with two labels, so per-sample losses are those of the mixture. A
    label smoothing of the criterion is kept.

    Example:
        >>> images, index, weight = Mixup()(torch.rand(4, 3, 8, 8), torch.Generator().manual_seed(0))
        >>> images.shape, index.shape, weight.sum(1)
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 2]), tensor([1., 1., 1., 1.]))

    Paper: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, https://arxiv.org/abs/1710.09412.

    Differs from the paper: nothing. Unlike timm, we draw the partners instead of taking them from the other end of the
    batch, and accept an odd batch.
    """

    def __init__(self, *, alpha: float = 0.2, prob: float = 1.0) -> None:
        super().__init__()
        check_mixing({"alpha": alpha}, prob)
        self.alpha = alpha
        self.prob = prob

    def active(self, *, step: int) -> bool:
        """Return False at ``prob=0``, where no batch is mixed."""
        return self.prob > 0

    def forward(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(N, ...) inputs -> (N, ...) inputs, (N, 2) index, (N, 2) weight."""
        check_shapes(inputs=inputs)
        partner = torch.randperm(len(inputs), generator=generator).to(inputs.device, non_blocking=True)
        if torch.rand((), generator=generator) >= self.prob:
            return inputs, *mixed_labels(partner, 1.0)
        share = draw_share(self.alpha, generator)
        return mixup(inputs, partner, share), *mixed_labels(partner, share)
