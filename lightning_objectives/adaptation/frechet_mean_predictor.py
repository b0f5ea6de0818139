"""Prediction by the Fréchet mean of the classes (Loki)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Adapter
from lightning_objectives.shapes import check_classes, check_shapes

_GREATEST = 1e19
"""The greatest distance."""


def frechet_mean_logits(
    logits: Tensor,
    *,
    distances: Sequence[Sequence[float]],
    observed: Sequence[int] | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""Compute logits whose greatest one is the class that lies nearest to all probable classes.

    .. math::
        \hat y = \arg\min_y F(y), \quad F(y) = \sum_{i \in \text{observed}} p_i\, d(y, i)^2, \quad
        p = \mathrm{softmax}(z_\text{observed} / T)

    The result is :math:`\min_{y'} F(y') - F(y)`, which is 0 for the predicted class and less for all others.

    Args:
        logits: (N, C) :math:`z`, in any float type; computed in float32 or better.
        distances: (C, C) :math:`d \ge 0`: how far class y is from class i. Each class is at 0 from itself.
        observed: the classes that the network was trained on. Its logits of the others do not count, but it can predict
            them all the same. None for all classes.
        temperature: :math:`T > 0` of the probabilities.

    Returns:
        (N, C) logits, in the type of ``logits``; at least the least number of that type, which is -65504 in float16.

    Raises:
        ValueError: shapes that do not fit, distances that are none, unknown classes, or a temperature that is not > 0.

    Example:
        >>> line = [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
        >>> logits = torch.tensor([[0.5, 0.1, 0.4]]).log()  # the squares are 0.1 + 1.6, 0.5 + 0.4 and 2.0 + 0.1
        >>> frechet_mean_logits(logits, distances=line)
        tensor([[-0.8000,  0.0000, -1.2000]])

    Paper: Roberts et al., Geometry-Aware Adaptation for Pretrained Models, NeurIPS 2023,
    https://arxiv.org/abs/2307.12226.

    The formula is that of the authors' code (https://github.com/SprocketLab/loki, ``simclr_exps/loki.py``), which takes
    the most probable class of :math:`-p D^2`. Not checked at the source: the equation as the paper prints it.

    Differs from the code: the result is a table of logits in place of the class. The probabilities are a softmax over
    the observed classes; the authors use one-vs-rest classifiers too. The greatest logit is 0, so that the best classes
    do not become equal in half precision.
    """
    check_shapes(logits=logits)
    check_classes(logits)
    _check(distances, observed, temperature)
    if len(distances) != logits.shape[1]:
        raise ValueError(
            f"distances of {len(distances)} classes do not fit logits of the shape {tuple(logits.shape)}: give the "
            "distance between each two classes of the logits."
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    squares = torch.tensor(distances, dtype=wide).square().T  # (i, y)
    z = logits.to(wide) / temperature
    if observed is not None:
        hidden = torch.ones(len(squares), dtype=torch.bool)
        hidden[list(observed)] = False
        z = z.masked_fill(hidden.to(z.device, non_blocking=True), -torch.inf)
    with torch.autocast(z.device.type, enabled=False):
        expected = z.softmax(1) @ squares.to(z.device, non_blocking=True)
    scores = expected.amin(1, keepdim=True) - expected
    return scores.clamp_min(torch.finfo(logits.dtype).min).to(logits.dtype)


def _check(distances: Sequence[Sequence[float]], observed: Sequence[int] | None, temperature: float) -> None:
    classes = len(distances)
    if not classes:
        raise ValueError(f"distances={distances!r} must have a row and a column for each class.")
    for y, row in enumerate(distances):
        if len(row) != classes:
            raise ValueError(f"distances[{y}]={row!r} must have {classes} numbers: the table must be square.")
        if row[y] != 0 or not all(0 <= distance <= _GREATEST for distance in row):
            raise ValueError(
                f"distances[{y}]={row!r} must be numbers from 0 to {_GREATEST:g}, whose squares float32 can hold, with "
                f"a 0 at {y}: a class is at 0 from itself."
            )
    if observed is not None and (not observed or not all(0 <= i < classes for i in observed)):
        raise ValueError(f"observed={list(observed)} must name one or more of the classes 0 to {classes - 1}.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be finite and > 0; 1 takes the probabilities as they are.")


class FrechetMeanPredictor(Adapter):
    r"""Predicts the class in the middle of the probable ones, so that mistakes are near misses.

    The predictions are those of :func:`frechet_mean_logits`. A class that the network was never trained on can be
    predicted too, if it lies between others.

    Args:
        distances: (C, C) the distance between each two classes: steps in a taxonomy, or between embeddings of words.
        observed: the classes that the network was trained on; None for all.
        temperature: :math:`T > 0`. Fit it with ``TemperatureScaling`` if the network is too sure of itself.

    Raises:
        ValueError: distances that are no square table of numbers >= 0 with zeros on the diagonal, unknown classes, or a
            temperature that is not > 0; at the first batch, logits of another number of classes.

    When to use: if some mistakes are worse than others and a taxonomy says how much, or if the head has classes without
    training samples. If all distances between two classes are equal, the prediction is the most probable class.
    Cost: a product of (N, C) and (C, C) for each batch. The distances are copied to the device with each batch.
    Interactions: the accuracy can fall, because the middle need not be the most probable class. The logits are squared
    distances: cross entropy, calibration and the entropy of them mean nothing. Not for ``TENT`` and the like.

    Example:
        >>> FrechetMeanPredictor(distances=[[0, 1], [1, 0]]).predict(torch.tensor([[0.0, 1.0]]))
        tensor([[-0.4621,  0.0000]])

    Paper: see :func:`frechet_mean_logits`.
    """

    function = staticmethod(frechet_mean_logits)
    problems = ("classes", "binary")
    by_process = ""
    example: ClassVar = {"distances": ((0.0, 1.0, 2.0), (1.0, 0.0, 1.0), (2.0, 1.0, 0.0))}

    def __init__(
        self,
        *,
        distances: Sequence[Sequence[float]],
        observed: Sequence[int] | None = None,
        temperature: float = 1.0,
    ) -> None:
        _check(distances, observed, temperature)
        self.distances = tuple(tuple(float(distance) for distance in row) for row in distances)
        self.observed = None if observed is None else tuple(observed)
        self.temperature = temperature

    def predict(self, logits: Tensor) -> Tensor:
        """The logits of the middle class."""
        return frechet_mean_logits(logits, **self.settings())
