"""LAME."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Adapter
from lightning_objectives.shapes import check_classes, check_shapes

Affinity = Literal["rbf", "knn", "linear"]
"""How alike two samples are, by their features."""


def feature_affinity(features: Tensor, *, affinity: Affinity = "rbf", neighbors: int = 5) -> Tensor:
    r"""Compute how alike the samples of a batch are, by the directions of their features.

    With :math:`d_{ij}` the distance of the normalized features: ``rbf`` is :math:`\exp(-d_{ij}^2 / 2 \sigma^2)`, where
    :math:`\sigma` is the mean distance to the k-th nearest sample, a sample being its own first; ``knn`` is 1 for the k
    nearest others and 0 elsewhere; ``linear`` is the cosine.

    Args:
        features: (N, D), in any float type; computed in float32 or better.
        affinity: ``rbf``, ``knn`` or ``linear``.
        neighbors: k, at least 1.

    Returns:
        (N, N) affinities.

    Raises:
        ValueError: features of another shape, or an unknown setting.

    Example:
        >>> feature_affinity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), affinity="knn", neighbors=1)
        tensor([[0., 1., 0.],
                [1., 0., 0.],
                [1., 0., 0.]])

    Paper: Boudiaf et al., Parameter-free Online Test-time Adaptation, CVPR 2022, section 4,
    https://arxiv.org/abs/2201.05718.

    Differs from the paper: its code calls the nearest sample the sample itself, also where another one is equal.
    """
    check_shapes(features=features)
    _check_affinity(affinity, neighbors)
    directions = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    if affinity == "linear":
        return _product(directions, directions.T)
    # Products of matrices would give a sample a distance to itself, which the width of the kernel does not forgive.
    distances = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
    count = len(features)
    if not count:
        return distances
    if affinity == "knn":
        others = distances + torch.diag(torch.full_like(distances[0], float("inf")))
        nearest = others.topk(min(neighbors, count - 1), largest=False).indices
        return torch.zeros_like(distances).scatter_(1, nearest, 1.0)
    width = distances.topk(min(neighbors, count), largest=False).values[:, -1].mean()
    exponent = -distances.square() / (2 * width.square())
    # With a width of zero only equal samples are alike.
    return torch.where(distances == 0, 1.0, exponent.exp())


def lame_logits(
    logits: Tensor,
    features: Tensor,
    *,
    affinity: Affinity = "rbf",
    neighbors: int = 5,
    strength: float = 1.0,
    iterations: int = 100,
) -> Tensor:
    r"""Correct the predictions of a batch so that samples with like features have like classes.

    Iterates, from :math:`z = p = \mathrm{softmax}(\text{logits})`,

    .. math::
        z_i \leftarrow \mathrm{softmax}\Big(\log p_i + \lambda \sum_j w_{ij} z_j\Big)

    with the affinities w of :func:`feature_affinity`. It stops once the energy
    :math:`\sum_i z_i \cdot (\log z_i - \log p_i) - \lambda \sum_{ij} w_{ij} z_i \cdot z_j` changes by less than
    :math:`10^{-8}` of its value.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        features: (N, D) inputs of the head.
        affinity: ``rbf``, ``knn`` or ``linear``.
        neighbors: k of the affinity, at least 1.
        strength: :math:`\lambda \ge 0`; at 0 the result is the log-softmax of the logits.
        iterations: the most iterations, at least 1.

    Returns:
        (N, C) logarithms of the corrected probabilities, which are logits, in the type of the logits.

    Raises:
        ValueError: shapes that do not fit, or a setting out of its range.

    Example:
        >>> logits, features = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.1]]), torch.ones(3, 1)
        >>> lame_logits(logits, features).argmax(1)  # three like samples, two of which are sure
        tensor([0, 0, 0])

    Paper: Boudiaf et al., Parameter-free Online Test-time Adaptation, CVPR 2022, section 4,
    https://arxiv.org/abs/2201.05718.

    Differs from the paper: its code takes the logarithm of p + 1e-10.
    """
    check_shapes(logits=logits, features=features)
    check_classes(logits)
    _check_affinity(affinity, neighbors)
    _check_steps(strength, iterations)
    weights = feature_affinity(features, affinity=affinity, neighbors=neighbors)
    wide = torch.promote_types(weights.dtype, torch.promote_types(logits.dtype, torch.float32))
    log_prior, weights = logits.to(wide).log_softmax(1), weights.to(wide)
    adapted, energy = log_prior, log_prior.new_full((), float("inf"))
    settled = torch.zeros_like(energy, dtype=torch.bool)
    for iteration in range(iterations):
        pull = strength * _product(weights, adapted.exp())
        proposed = (log_prior + pull).log_softmax(1)
        shares = proposed.exp()
        now = (torch.where(shares > 0, shares * (proposed - log_prior), 0.0) - shares * pull).sum()
        adapted = adapted.where(settled, proposed)
        settled = settled | ((now - energy).abs() <= 1e-8 * energy.abs()) if iteration > 1 else settled
        energy = now
        # Only the host may look: a GPU goes through all iterations, which change nothing any more.
        if settled.device.type == "cpu" and bool(settled):
            break
    return adapted.to(logits.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices at full precision, also under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _check_affinity(affinity: str, neighbors: int) -> None:
    if affinity not in ("rbf", "knn", "linear"):
        raise ValueError(f"affinity={affinity!r} must be 'rbf', 'knn' or 'linear'.")
    if neighbors < 1:
        raise ValueError(f"neighbors={neighbors} must be >= 1.")


def _check_steps(strength: float, iterations: int) -> None:
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength={strength} must be finite and >= 0; 0 keeps the predictions.")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be >= 1.")


class LAME(Adapter):
    r"""Corrects the predictions of a test batch by those of samples with like features, and leaves the network alone.

    The predictions are those of :func:`lame_logits`.

    Args:
        affinity: ``rbf``, ``knn`` or ``linear``: how alike two samples are.
        neighbors: k of the affinity, at least 1.
        strength: :math:`\lambda \ge 0`, how much the other samples count; at 0 the predictions are the plain ones.
        iterations: the most iterations, at least 1.

    Raises:
        ValueError: a setting out of its range.

    When to use: if neighbors in the stream often have the same class (video, sorted data) or the classes have other
    shares than in training. On shuffled, balanced batches it does not help.
    Cost: up to ``iterations`` products of (N, N) and (N, C) a batch; no backward pass. On a GPU all iterations run.
    Interactions: the predictions for a sample depend on the other samples in its batch. Entropies, losses and
    calibration are those of the corrected predictions, which are surer than the network's own. If all samples of a
    batch are about equally far from each other, as many features of small networks are, ``rbf`` joins them all and
    overrules the logits: compare it with ``knn`` first.

    Example:
        >>> LAME(strength=0.0).active(step=0)
        False

    Paper: see :func:`lame_logits`.
    """

    function = staticmethod(lame_logits)
    problems = ("classes", "binary")

    def __init__(
        self, *, affinity: Affinity = "rbf", neighbors: int = 5, strength: float = 1.0, iterations: int = 100
    ) -> None:
        _check_affinity(affinity, neighbors)
        _check_steps(strength, iterations)
        self.affinity: Affinity = affinity
        self.neighbors = neighbors
        self.strength = strength
        self.iterations = iterations

    def active(self, *, step: int) -> bool:
        """Return False at a ``strength`` of 0."""
        return self.strength > 0

    def predict(self, logits: Tensor, features: Tensor) -> Tensor:
        """The corrected logits."""
        return lame_logits(logits, features, **self.settings())
