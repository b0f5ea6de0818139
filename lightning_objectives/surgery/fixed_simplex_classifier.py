"""A classifier whose weights are the corners of a simplex, and stay."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.kinds import LayerPlace, Surgery


def simplex_vectors(classes: int) -> Tensor:
    r"""Compute the corners of a regular simplex: C unit vectors with the same angle between any two of them.

    They are the rows of the identity of size C - 1 and one more row, :math:`a \mathbb{1}` with
    :math:`a = (1 - \sqrt C) / (C - 1)`, after their mean is subtracted and their length is set to 1. The cosine of two
    of them is :math:`-1 / (C - 1)`, the least that C vectors can have.

    Args:
        classes: C >= 2.

    Returns:
        (C, C - 1) float64.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> vectors = simplex_vectors(3)
        >>> torch.round(vectors @ vectors.T, decimals=3)
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    if classes < 2:
        raise ValueError(f"classes={classes} must be >= 2: a simplex needs two corners.")
    last = torch.full((1, classes - 1), (1 - classes**0.5) / (classes - 1), dtype=torch.float64)
    corners = torch.cat([torch.eye(classes - 1, dtype=torch.float64), last])
    return F.normalize(corners - corners.mean(0), dim=1)


class FixedSimplexClassifier(Surgery):
    r"""Keeps features comparable between trainings, by a head whose weights are fixed and as far apart as can be.

    The head's weights become :math:`s V Q`, and its bias 0: V are the C corners of :func:`simplex_vectors`, and the
    rows of Q are C - 1 orthonormal directions of the feature space, always the same ones. They stay there in the
    training, and after it.

    Args:
        scale: s > 0, the length of each class's weights.

    Raises:
        ValueError: a scale that is not above 0; in the training, a head that is no ``nn.Linear``, or that has fewer
            features than classes - 1.

    When to use: if features of networks that are trained one after another are compared, as in retrieval where the
    gallery is not computed again; with more classes than there are today, so that new ones find a free corner.
    Cost: none; the head's gradient is not computed.
    Interactions: the weights of the head that you load or initialize are lost. Features after a ReLU are not negative,
    so let the features have at least twice as many dimensions as there are classes, or end with a linear layer, as the
    paper's networks do. Give optimizers the parameters as ever: the head has no gradient.

    Example:
        >>> head = nn.Linear(4, 3)
        >>> FixedSimplexClassifier(scale=2.0).prepare(head, LayerPlace())
        >>> torch.round(head.weight.detach().norm(dim=1), decimals=4), head.bias.detach()
        (tensor([2., 2., 2.]), tensor([0., 0., 0.]))

    Paper: Pernici et al., Regular Polytope Networks, TNNLS 2021, on the d-simplex, https://arxiv.org/abs/2103.15632.

    Differs from the paper: the features may have more than C - 1 dimensions, and a scale replaces their normalization.
    """

    changes = "head"
    family = "retrieval"

    def __init__(self, *, scale: float = 1.0) -> None:
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale={scale} must be > 0 and finite.")
        self.scale = scale

    def check(self, layer: nn.Module, count: int) -> None:
        """Refuse a head that is no linear layer, or has too few features."""
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{type(layer).__name__} is no nn.Linear. Name the linear head with layers=.")
        if layer.in_features < layer.out_features - 1:
            raise ValueError(
                f"{layer.out_features} corners of a simplex need {layer.out_features - 1} features at least, but it "
                f"has {layer.in_features}. Widen the layer before it."
            )

    @torch.no_grad()
    def prepare(self, layer: nn.Module, place: LayerPlace) -> None:
        """Write the corners into the head's weights."""
        assert isinstance(layer, nn.Linear)  # check() has seen to it
        generator = torch.Generator().manual_seed(0)
        shape = layer.in_features, layer.out_features - 1
        directions = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q
        layer.weight.copy_(self.scale * simplex_vectors(layer.out_features) @ directions.T)
        if layer.bias is not None:
            layer.bias.zero_()

    def frozen(self, place: LayerPlace) -> bool:
        """Always."""
        return True
