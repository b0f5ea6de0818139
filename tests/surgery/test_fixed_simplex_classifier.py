import math

import pytest
import torch
from torch import nn

from lightning_objectives.kinds import LayerPlace
from lightning_objectives.surgery import FixedSimplexClassifier, simplex_vectors


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_the_corners_are_as_far_apart_as_can_be(classes):
    vectors = simplex_vectors(classes)
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(vectors @ vectors.T, expected)
    assert vectors.shape == (classes, classes - 1)


def test_a_triangle_by_hand():
    """(1, 0), (0, 1) and (a, a) with a = (1 - sqrt 3) / 2 have the sides sqrt 2; the last is on the diagonal."""
    torch.testing.assert_close(simplex_vectors(3)[2], torch.full((2,), -math.sqrt(0.5), dtype=torch.float64))


def test_the_heads_weights_have_the_same_angles_in_more_dimensions():
    head = nn.Linear(7, 4)
    FixedSimplexClassifier(scale=3.0).prepare(head, LayerPlace())
    gram = head.weight @ head.weight.T
    torch.testing.assert_close(gram, 9 * (4 / 3 * torch.eye(4) - 1 / 3), rtol=0, atol=1e-5)
    assert not head.bias.any()
    without = nn.Linear(7, 4, bias=False)
    FixedSimplexClassifier(scale=3.0).prepare(without, LayerPlace())
    assert torch.equal(without.weight, head.weight)
    assert FixedSimplexClassifier().frozen(LayerPlace())


@pytest.mark.parametrize(
    ("layer", "message"),
    [(nn.Conv2d(4, 3, 1), "Conv2d is no nn.Linear"), (nn.Linear(4, 6), "6 corners of a simplex need 5 features")],
)
def test_heads_that_cannot_hold_it_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        FixedSimplexClassifier().check(layer, 1)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="scale=0 must be > 0"):
        FixedSimplexClassifier(scale=0)
    with pytest.raises(ValueError, match="classes=1 must be >= 2"):
        simplex_vectors(1)
