import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.weighting import FocalWeights, focal_weights

LOSSES = torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0])


def test_worked_values():
    """(1 - e^-0.5)² = 0.154818, then 0.747645, 0.399576, 0.963704, 0.902905; their mean is 0.633730."""
    expected = torch.tensor([0.244297, 1.179754, 0.630516, 1.520687, 1.424747])
    torch.testing.assert_close(focal_weights(LOSSES, gamma=2.0), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_they_are_the_factors_of_the_focal_loss(gamma):
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    factors = (1 - logits.softmax(1).gather(1, target[:, None]).squeeze(1)) ** gamma
    weights = focal_weights(F.cross_entropy(logits, target, reduction="none"), gamma=gamma)
    torch.testing.assert_close(weights, factors / factors.mean(), rtol=1e-4, atol=1e-6)


def test_tiny_losses_keep_their_ratio():
    """1 - e^-x is x, and its fifth power is below the least number of float32."""
    weights = focal_weights(torch.tensor([1e-9, 2e-9]), gamma=5.0)
    torch.testing.assert_close(weights, torch.tensor([2 / 33, 64 / 33]), rtol=1e-4, atol=0)


def test_no_gamma_gives_equal_weights_and_leaves_the_criterion_alone():
    assert focal_weights(LOSSES, gamma=0.0).tolist() == [1, 1, 1, 1, 1]
    assert not FocalWeights(gamma=0.0).active(step=0)
    assert FocalWeights().active(step=0)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [-1.0, 0.0], [math.nan, math.inf], [3.0]])
def test_weights_are_one_where_nothing_tells_the_losses_apart(losses):
    assert focal_weights(torch.tensor(losses)).tolist() == [1.0] * len(losses)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_weighs_nothing_and_the_others_as_without_it(bad, gamma):
    weights = focal_weights(torch.tensor([0.5, bad, 2.0]), gamma=gamma)
    assert weights[1] == 0
    torch.testing.assert_close(weights[[0, 2]], focal_weights(torch.tensor([0.5, 2.0]), gamma=gamma))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"gamma=-1\.0 must be >= 0"):
        FocalWeights(gamma=-1.0)
