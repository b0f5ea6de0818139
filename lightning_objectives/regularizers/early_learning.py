"""Early-learning regularization."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer, Row
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"targets": forms("(N, C) float")}
_LEAST = 1e-4
"""What the authors' code keeps all probabilities away from 0 and 1."""


def early_learning_targets(logits: Tensor, targets: Tensor, *, momentum: float = 0.7) -> Tensor:
    r"""Compute the new running mean of what the network predicts for each sample.

    .. math::
        t \leftarrow \beta t + (1 - \beta) \frac{p}{\sum_k p_k}

    with p the softmax, clamped to :math:`[10^{-4}, 1 - 10^{-4}]`.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        targets: (N, C) running means before.
        momentum: :math:`\beta`, in [0, 1]; 1 learns nothing.

    Returns:
        (N, C) running means, without gradient.

    Raises:
        ValueError: shapes that do not fit, or a momentum outside of [0, 1].

    Example:
        >>> early_learning_targets(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), momentum=0.5)
        tensor([[0.7500, 0.2500]])
    """
    _check(momentum)
    check_shapes(_FORMS, logits=logits, targets=targets)
    p = _probabilities(logits.detach())
    return momentum * targets + (1 - momentum) * p / p.sum(1, keepdim=True)


def early_learning_penalty(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Compute a penalty that is low where the network predicts what it has predicted before.

    .. math::
        \log \left( 1 - \sum_k t_k p_k \right)

    with p the softmax, clamped to :math:`[10^{-4}, 1 - 10^{-4}]`.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        targets: (N, C) running means t of the predictions, without gradient.

    Returns:
        (N,) terms <= 0.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> early_learning_penalty(torch.zeros(1, 2), torch.tensor([[0.5, 0.3]]))  # log(1 - 0.4)
        tensor([-0.5108])
    """
    check_shapes(_FORMS, logits=logits, targets=targets)
    return (-(targets.detach() * _probabilities(logits)).sum(1)).log1p()


def _probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).clamp(_LEAST, 1 - _LEAST)


def _check(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must lie in [0, 1]; 1 learns nothing.")


class EarlyLearningRegularization(Regularizer):
    r"""Keeps a network from memorizing wrong labels: holds it to what it predicted early in the training.

    Each sample has a running mean of the predictions, :func:`early_learning_targets`, which this step's prediction
    enters first. The terms are then those of :func:`early_learning_penalty`. The callback multiplies them by 3 if you
    give no ``strength``.

    Args:
        momentum: :math:`\beta`, how slowly the running mean moves, in [0, 1].

    Raises:
        ValueError: a momentum outside of [0, 1].

    When to use: if many labels are wrong, and no clean data are at hand. The paper's settings are: momentum 0.7 and
    strength 3 for CIFAR-10 with symmetric noise and for Clothing1M, 0.9 and 1 for CIFAR-10 with asymmetric noise, 0.9
    and 7 for CIFAR-100.
    Cost: C numbers in float32 for each sample of the data set, on the device and in each checkpoint: 20 MB for 50,000
    samples of 100 classes, 5 GB for ImageNet.
    Interactions: wrap the data set with ``with_index``. The logged term is negative. Not with mixed samples.

    Example:
        >>> method = EarlyLearningRegularization(momentum=0.5)
        >>> method(torch.zeros(1, 2), {"targets": torch.zeros(1, 2)})  # t = (0.25, 0.25): log(1 - 0.25)
        tensor([-0.2877])

    Paper: Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, NeurIPS 2020,
    https://arxiv.org/abs/2007.00151. As in its code, probabilities are clamped.
    """

    family = "label noise"
    problems = ("classes",)
    default_strength = 3.0
    remembers: ClassVar = {"targets": Row(("C",), 0.0)}
    unkept_laws: ClassVar = {
        "the_gradient_is_that_of_finite_differences": "the running mean holds this prediction as a constant"
    }

    def __init__(self, *, momentum: float = 0.7) -> None:
        super().__init__()
        _check(momentum)
        self.momentum = momentum

    def forward(self, logits: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        """(N, C) logits and the running means -> (N,) terms."""
        return early_learning_penalty(logits, self.learn(logits, memory)["targets"])

    def learn(self, logits: Tensor, memory: Mapping[str, Any]) -> dict[str, Tensor]:
        """The new running means."""
        return {"targets": early_learning_targets(logits, memory["targets"], momentum=self.momentum)}
