"""Learning to reject with a fixed predictor."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives.kinds import Loss
from lightning_objectives.shapes import check_classes, check_shapes


class FixedPredictorRejection(Loss):
    r"""Trains a rejector for a network that stays as it is: it says for which samples not to trust the prediction.

    .. math::
        \ell = e^{\frac{\alpha}{2} (r - a)} + c\, e^{-\beta r}, \qquad
        \beta = \frac{\alpha}{2 c} \left( c\, e^{\alpha / 2} + (1 - c)\, e^{-\alpha / 2} \right)

    with :math:`r` the score of the rejector, a linear layer on the features, and :math:`a` 1 where the top class is the
    target, else -1. A prediction is accepted where :math:`r > 0`. With this :math:`\beta` the best score is above 0
    exactly where the probability of an error is below the cost :math:`c` of a rejection. For class probabilities it is
    the expectation.

    Args:
        cost: :math:`c` in (0, 1), what a rejection costs beside an error, which costs 1.
        alpha: :math:`\alpha > 0`.

    Raises:
        ValueError: a setting outside its range; in the training, shapes that do not fit, or a single class.

    When to use: after a training, on data that the network was not trained on, because on its training data it is right
    too often: ``ReplaceLoss(FixedPredictorRejection(cost=0.1))``. The paper's figure has a cost of 0.05 and an alpha
    of 2.
    Cost: one linear layer with one output.
    Interactions: no gradient reaches the network, so its weights stay without being frozen; do not freeze its head, by
    whose gradient the callback finds the criterion. BatchNorm statistics and dropout go on: set them to evaluation.
    DDP needs ``find_unused_parameters=True``. After the fit the rejector is ``callback.loss.rejector``; the checkpoint
    of the training has its weights. A score far from 0 has a loss that grows exponentially, so begin with a low
    learning rate.

    Example:
        >>> method = FixedPredictorRejection(cost=0.2, alpha=1.0)
        >>> method.build(features=2)
        >>> _ = nn.init.zeros_(method.rejector.weight), nn.init.zeros_(method.rejector.bias)
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> method(torch.zeros(2, 2), logits, torch.tensor([0, 0])).detach()  # e^(-1/2) + 0.2, and e^(1/2) + 0.2
        tensor([0.8065, 1.8487])

    Paper: Mohri et al., Learning to Reject with a Fixed Predictor: Application to Decontextualization, ICLR 2024,
    https://arxiv.org/abs/2301.09044. Not checked at the source: the form of the loss. The relation of alpha, beta and
    the cost was found by a calculation, which the text below the paper's figure confirms.
    """

    family = "uncertainty"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"cost": 0.2}
    unkept_laws: ClassVar = {"the_gradient_is_that_of_finite_differences": "the network is held as it is"}

    def __init__(self, *, cost: float, alpha: float = 2.0) -> None:
        super().__init__()
        if not 0 < cost < 1:
            raise ValueError(f"cost={cost} must be in (0, 1): an error costs 1.")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha={alpha} must be > 0 and finite; the paper's figure has 2.")
        self.cost = cost
        self.alpha = alpha
        self.rejector: nn.Linear | None = None

    def build(self, *, features: int) -> None:
        """A new rejector on the features."""
        self.rejector = nn.Linear(features, 1)

    def forward(self, features: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """(N, D) features, (N, C) logits, (N,) classes or (N, C) probabilities -> (N,) losses."""
        check_shapes(features=features, logits=logits, target=target)
        check_classes(logits)
        assert self.rejector is not None
        score: Tensor = self.rejector(features.detach().to(self.rejector.weight.dtype)).squeeze(1)
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        top = logits.argmax(1)
        right = target.gather(1, top[:, None]).squeeze(1) if target.is_floating_point() else (top == target)
        right = right.to(score.dtype)
        half = self.alpha / 2
        beta = half * (math.exp(half) + (1 - self.cost) / self.cost * math.exp(-half))
        accepted = right * (half * (score - 1)).exp() + (1 - right) * (half * (score + 1)).exp()
        return accepted + self.cost * (-beta * score).exp()
