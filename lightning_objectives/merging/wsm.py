"""Warmup-stable-merge (WSM): a merge of checkpoints in place of a decay of the learning rate."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_steps

Shape = Literal["1-sqrt", "linear", "cosine", "square", "ema"]

_SHAPES: dict[str, Callable[[float], float]] = {
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "square": lambda x: 1 - x * x,
}


def wsm_coefficients(
    steps: Sequence[int], *, shape: Shape | Callable[[float], float] = "1-sqrt", ema_weight: float = 0.2
) -> Tensor:
    r"""Compute the shares of n checkpoints of a constant learning rate, whose merge replaces a decay of that rate.

    The merge keeps the update between checkpoints i - 1 and i with the weight :math:`w_i`, the decay's height there:

    .. math::
        \theta_0 + \sum_{i=1}^{n-1} w_i (\theta_i - \theta_{i-1}) = \sum_{j=0}^{n-1} c_j \theta_j, \qquad
        c_0 = 1 - w_1, \quad c_j = w_j - w_{j+1}, \quad c_{n-1} = w_{n-1}, \qquad w_i = s(i / n)

    If the checkpoints are not evenly spaced, :math:`i / n` is replaced by the elapsed part of the steps, and the decay
    ends one mean interval after the newest checkpoint.

    Args:
        steps: the number of optimizer steps before each checkpoint, increasing.
        shape: s. ``1-sqrt`` :math:`1 - \sqrt x` falls at once, so the *oldest* checkpoint has the largest share;
            ``linear`` :math:`1 - x` is the plain mean; ``cosine`` :math:`(1 + \cos \pi x) / 2`; ``square``
            :math:`1 - x^2` favours the newest; ``ema`` is an exponential moving average over the checkpoints. You can
            also pass any function on [0, 1] that falls and stays within [0, 1].
        ema_weight: for ``ema``, the share a of the newest checkpoint, :math:`c_j = a (1 - a)^{n-1-j}` and
            :math:`c_0 = (1 - a)^{n-1}`; 1 is the newest alone. The other shapes do not use it.

    Returns:
        (n,) float64 shares >= 0 with sum 1; ``[1]`` for one checkpoint.

    Raises:
        ValueError: the shape is unknown or does not fall within [0, 1], or the steps do not increase.

    Example:
        >>> wsm_coefficients([100, 200, 300, 400]).tolist()  # doctest: +NUMBER
        [0.5000, 0.2071, 0.1589, 0.1340]

    Paper: Tian et al., WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for LLM Pre-training, 2025,
    theorem 3.1, https://arxiv.org/abs/2507.17634.

    Differs from the paper: the paper does not say how it discretises the shapes. We use i / n, as ``weighted_merge`` of
    Megatron-LM does, which gives no checkpoint the share 0. Using the true steps of unevenly spaced checkpoints is our
    extension. The paper does not give the coefficient of its ``ema`` either.
    """
    _check(shape, ema_weight)
    steps = check_steps(steps)
    n = len(steps)
    if shape == "ema":
        # The height is the part of an update that is kept: the sum of the shares of all checkpoints that hold it.
        height: Callable[[float], float] = lambda x: 1 - (1 - ema_weight) ** (n * (1 - x))  # noqa: E731  # as in _SHAPES
    else:
        height = _SHAPES[shape] if isinstance(shape, str) else shape
    decay_steps = (steps[-1] - steps[0]) * n / (n - 1) if n > 1 else 1.0
    heights = [1.0, *(float(height((step - steps[0]) / decay_steps)) for step in steps[1:]), 0.0]
    if any(not earlier >= later for earlier, later in pairwise(heights)):
        raise ValueError(
            f"shape={shape!r} keeps {heights[1:-1]} of the updates, but a decay must fall from 1 to 0 without rising: "
            "restarts and cycles have no merge. Use '1-sqrt', 'linear', 'cosine', 'square' or another falling function."
        )
    return -torch.tensor(heights, dtype=torch.float64).diff()


def _check(shape: Shape | Callable[[float], float], ema_weight: float) -> None:
    if not callable(shape) and shape not in (*_SHAPES, "ema"):
        raise ValueError(f"shape={shape!r} must be '1-sqrt', 'linear', 'cosine', 'square', 'ema' or a function.")
    if not 0 < ema_weight <= 1:
        raise ValueError(f"ema_weight={ema_weight} must be in (0, 1]; 1 is the newest checkpoint alone.")


class WSM(Merge):
    """Replaces a decay of the learning rate by a merge of checkpoints.

    The shares of the checkpoints are those of :func:`wsm_coefficients`.

    Args:
        shape: the decay that the merge replaces, see the function; the paper's best is ``1-sqrt``.
        ema_weight: the newest checkpoint's share with ``shape="ema"``.

    Raises:
        ValueError: the shape is unknown, or the share is outside (0, 1].

    When to use: if you train at a constant learning rate (after a warm-up) and would end with a decay. The merge gives
    at any time what the decay would have given, and the training goes on from the raw weights. Merge only after the
    first fast descent, and over a long stretch: in the paper, more tokens in the window help more than any shape.
    Cost: one pass over the n files.
    Interactions: if the learning rate decays as well, both effects add up and the gain is lost. The optimizer's state
    is never merged: continue from the raw weights and their state. Re-estimate the statistics of BatchNorm.

    Example:
        >>> WSM(shape="linear").coefficients([10, 20])
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    exemplar = True
    function = staticmethod(wsm_coefficients)

    def __init__(self, *, shape: Shape | Callable[[float], float] = "1-sqrt", ema_weight: float = 0.2) -> None:
        _check(shape, ema_weight)
        self.shape = shape
        self.ema_weight = ema_weight

    def coefficients(self, steps: Sequence[int]) -> Tensor:
        """(K,) increasing steps -> (K,) shares."""
        return wsm_coefficients(steps, shape=self.shape, ema_weight=self.ema_weight)
