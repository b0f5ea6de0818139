"""A mixture of an accurate and a robust classifier."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Adapter
from lightning_objectives.shapes import check_classes, check_shapes


def mixed_logits(
    logits: Tensor, reference_logits: Tensor, *, alpha: float, scale: float = 1.0, reference_scale: float = 1.0
) -> Tensor:
    r"""Compute the logarithms of a mixture of the probabilities of two classifiers.

    .. math::
        \log\big((1 - \alpha)\, \mathrm{softmax}(s z) + \alpha\, \mathrm{softmax}(s' z')\big)

    If :math:`\alpha \ge 1/2` and the greatest probability of the reference is more than :math:`(1 - \alpha) / \alpha`
    above its second, the mixture predicts the class of the reference, whatever the other classifier says.

    Args:
        logits: (N, C) :math:`z` of the accurate classifier, in any float type; computed in float32 or better.
        reference_logits: (N, C) :math:`z'` of the robust classifier.
        alpha: :math:`\alpha` in [0, 1], the share of the robust classifier.
        scale: :math:`s > 0` of the accurate classifier's logits.
        reference_scale: :math:`s' > 0` of the robust classifier's.

    Returns:
        (N, C) logarithms of probabilities, in the type of ``logits``.

    Raises:
        ValueError: shapes that do not fit, or a setting out of its range.

    Example:
        >>> sure, other = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> mixed_logits(sure, other, alpha=0.6).exp()  # 0.4 * 0.9 + 0.6 * 0.2
        tensor([[0.4800, 0.5200]])

    Paper: Bai et al., Mixing Classifiers to Alleviate the Accuracy-Robustness Trade-Off, L4DC 2024,
    https://arxiv.org/abs/2311.15165. The formula and the two scales are those of the authors' code
    (https://github.com/Bai-YT/AdaptiveSmoothing, ``models/comp_model.py``, with a fixed alpha).

    Differs from the code: computed by logarithms, so that no probability becomes 0.
    """
    check_shapes(logits=logits, reference_logits=reference_logits)
    check_classes(logits)
    _check(alpha, scale, reference_scale)
    wide = torch.promote_types(logits.dtype, torch.float32)
    own = (scale * logits.to(wide)).log_softmax(1)
    other = (reference_scale * reference_logits.to(wide)).log_softmax(1)
    if alpha in (0, 1):  # the logarithm of 0 would take part in the sum
        return (other if alpha else own).to(logits.dtype)
    return torch.logaddexp(own + math.log1p(-alpha), other + math.log(alpha)).to(logits.dtype)


def _check(alpha: float, scale: float, reference_scale: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must lie in [0, 1]; 0 is the tested network alone, 1 the reference alone.")
    for name, value in {"scale": scale, "reference_scale": reference_scale}.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be finite and > 0; 1 leaves the logits as they are.")


class MixedClassifier(Adapter):
    r"""Mixes a robust classifier into an accurate one, so that attacks gain less and clean accuracy stays high.

    The network that is tested is the accurate classifier. The robust one, trained against attacks, is the
    ``reference`` of the callback. The predictions are those of :func:`mixed_logits`.

    Args:
        alpha: :math:`\alpha` in [0, 1], the share of the robust classifier; from 1/2 on the mixture inherits its
            robustness where it is sure.
        scale: :math:`s > 0` of the tested network's logits.
        reference_scale: :math:`s' > 0` of the reference's logits. A greater one makes the reference surer, so that the
            mixture inherits more of its robustness.

    Raises:
        ValueError: a setting out of its range; logits of other rows or classes than the reference's.

    When to use: if you have an accurate and a robust network of the same classes. Choose ``alpha`` and the scales on
    validation data, clean and attacked.
    Cost: a forward pass of the reference for each batch, and its weights in memory.
    Interactions: an attack must know the mixture. One that sees the tested network alone says nothing of it.

    Example:
        >>> from lightning_objectives.callbacks import AdaptAtTest
        >>> robust = torch.nn.Linear(4, 3)
        >>> AdaptAtTest(MixedClassifier(alpha=0.7), reference=robust).adapter
        MixedClassifier(alpha=0.7, scale=1.0, reference_scale=1.0)

    Paper: see :func:`mixed_logits`.
    """

    function = staticmethod(mixed_logits)
    problems = ("classes", "binary")
    by_process = ""
    example: ClassVar = {"alpha": 0.7}

    def __init__(self, *, alpha: float, scale: float = 1.0, reference_scale: float = 1.0) -> None:
        _check(alpha, scale, reference_scale)
        self.alpha = alpha
        self.scale = scale
        self.reference_scale = reference_scale

    def active(self, *, step: int) -> bool:
        """Return False at an ``alpha`` of 0 with the logits as they are."""
        return self.alpha > 0 or self.scale != 1

    def predict(self, logits: Tensor, reference_logits: Tensor) -> Tensor:
        """The logarithms of the mixture."""
        return mixed_logits(logits, reference_logits, **self.settings())
