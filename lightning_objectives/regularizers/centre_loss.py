"""Centre loss: features stay near the centre of their class."""

import math

import torch
from torch import Tensor, nn

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_shapes


class CentreLoss(Regularizer):
    r"""Pulls the features of each class together, so that they tell apart also classes that were never seen.

    .. math::
        \frac{1}{2} \| f - c_y \|^2

    with :math:`f` the features and :math:`c_y` the trained centre of the target's class. For class probabilities it is
    the expectation over the classes. The callback multiplies the terms by 0.003 if you give no ``strength``.

    Args:
        centre_rate: the factor of the centres' own gradient, > 0. A rate of 1 / strength undoes the strength, so that
            the centres learn as fast as the network; the default does so for the default strength, nearly. With Adam
            the rate changes little.

    Raises:
        ValueError: a ``centre_rate`` that is not above 0; in the training, shapes that do not fit.

    When to use: beside cross entropy, if you use the features themselves, for retrieval or for faces. The default
    strength is the paper's; larger values pull more. Without cross entropy all features become equal.
    Cost: C times D trained numbers, which are gone after the training.
    Interactions: the optimizer trains the centres in the group of the head, so its weight decay pulls them towards 0.

    Example:
        >>> method = CentreLoss()
        >>> method.build(features=2, classes=3)
        >>> _ = method.centres.weight.data.copy_(torch.eye(3)[:, :2])
        >>> method(torch.tensor([[3.0, 2.0]]), torch.tensor([0])).detach()  # (2² + 2²) / 2
        tensor([4.])

    Paper: Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016, equation 2,
    https://ydwen.github.io/papers/WenECCV16.pdf. Not checked at the source: the number of the equation and the
    strength.

    Differs from the paper: the optimizer trains the centres. The paper moves the centre of a class by half of
    :math:`\sum (c - f) / (1 + n)`, with the sum over the n samples of the class in the batch. The mean over the batch
    stands for the sum, as in the authors' code.
    """

    family = "retrieval"
    problems = ("classes",)
    default_strength = 0.003

    def __init__(self, *, centre_rate: float = 300.0) -> None:
        super().__init__()
        if not 0 < centre_rate < math.inf:
            raise ValueError(f"centre_rate={centre_rate} must be > 0 and finite; 1 leaves the gradient as it is.")
        self.centre_rate = centre_rate
        self.centres: nn.Embedding | None = None

    def build(self, *, features: int, classes: int) -> None:
        """New centres, from the standard normal distribution; a head with one logit is one for two classes."""
        self.centres = nn.Embedding(max(classes, 2), features)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """(N, D) features and (N,) classes or (N, C) probabilities -> (N,) terms."""
        check_shapes(features=features, target=target)
        assert self.centres is not None
        weight = self.centres.weight
        classes = target.shape[1] if target.is_floating_point() else len(weight)
        if (classes, features.shape[1]) != tuple(weight.shape):
            raise ValueError(
                f"features of the shape {tuple(features.shape)} and target of the shape {tuple(target.shape)} must fit "
                f"the centres {tuple(weight.shape)}: one row for each class. Name the head of these features with "
                "head='path.to.it'."
            )
        wide = torch.promote_types(features.dtype, torch.float32)
        features, centres = features.to(wide), weight.to(wide)
        # The value of the centres, with a gradient of its own rate.
        centres = centres.detach() + self.centre_rate * (centres - centres.detach())
        if not target.is_floating_point():
            # A target to ignore, such as -100 or 255, is no class; the callback drops its term.
            known = torch.where((target >= 0) & (target < classes), target, 0).long()
            return (features - centres[known]).square().sum(1) / 2
        return (target * torch.cdist(features, centres).square()).sum(1) / 2
