import math

import numpy as np
import pytest
import torch
from scipy.special import logit
from sklearn.calibration import _SigmoidCalibration

from lightning_objectives.calibration import PlattScaling, sigmoid_scale_and_bias

SCORES = torch.tensor([-2, -1, -0.5, 0.3, 0.8, 1.5, 2.5], dtype=torch.float64)
LOGITS = torch.stack([torch.zeros_like(SCORES), SCORES], 1)
TARGET = torch.tensor([0, 0, 1, 0, 1, 1, 1])


def fitted(logits=LOGITS, target=TARGET):
    method = PlattScaling()
    method.fit(logits, target)
    return method


def test_by_hand():
    """Two scores, so that the sigmoid reaches the target of each: 5/6 for four of class 1, and 1/4 for two of 0."""
    logits = torch.tensor([[0.0, 3.0]] * 4 + [[1.0, 0.0]] * 2)
    p = fitted(logits, torch.tensor([1, 1, 1, 1, 0, 0]))(logits)
    torch.testing.assert_close(p[:, 1], torch.tensor([5 / 6] * 4 + [1 / 4] * 2))


def test_equals_scikit_learn():
    """The class is private; CalibratedClassifierCV runs it."""
    scale, bias = sigmoid_scale_and_bias(LOGITS, TARGET)
    theirs = _SigmoidCalibration().fit(SCORES.numpy(), TARGET.numpy())
    torch.testing.assert_close(scale, torch.full((2,), -theirs.a_, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(bias, torch.tensor([theirs.b_, -theirs.b_], dtype=torch.float64), rtol=1e-4, atol=0)
    assert scale[1].item() == pytest.approx(0.717654, abs=1e-6)
    assert bias[1].item() == pytest.approx(0.146473, abs=1e-6)
    p = theirs.predict(SCORES.numpy())
    torch.testing.assert_close(fitted()(LOGITS), torch.from_numpy(np.stack([1 - p, p], 1)), rtol=1e-5, atol=0)


def test_more_classes_are_taken_one_against_the_others():
    logits, target = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 4
    p = logits.softmax(1).numpy()
    theirs = np.stack([_SigmoidCalibration().fit(f, target == c).predict(f) for c, f in enumerate(logit(p).T)], 1)
    ours = fitted(logits, target)(logits).numpy()
    np.testing.assert_allclose(ours, theirs / theirs.sum(1, keepdims=True), rtol=1e-4)


def test_what_is_added_to_all_logits_of_a_row_changes_nothing():
    shifted = LOGITS + torch.randn(len(LOGITS), 1, dtype=torch.float64)
    torch.testing.assert_close(fitted(shifted)(shifted), fitted()(LOGITS))


def test_a_soft_target_counts_as_parts_of_samples():
    """With 1.75 samples of class 1 and 1.25 of class 0, the gradient in scale and bias is 0."""
    soft = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    scale, bias = sigmoid_scale_and_bias(LOGITS[[3, 0, 6]], soft)
    high, low = 2.75 / 3.75, 1 / 3.25
    f = SCORES[[3, 0, 6]]
    error = (scale[1] * f + bias[1]).sigmoid() - torch.tensor([0.25 * low + 0.75 * high, low, high]).double()
    assert error.sum().abs() < 1e-7 > (error * f).sum().abs()


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e4])
def test_scores_that_separate_the_classes_have_a_finite_scale_that_follows_their_unit(unit):
    target = (SCORES > 0).long()
    scale, bias = sigmoid_scale_and_bias(unit * LOGITS, target)
    assert bias.isfinite().all()
    torch.testing.assert_close(unit * scale, sigmoid_scale_and_bias(LOGITS, target)[0])


def test_equal_scores_give_the_mean_target():
    """Three of class 1, 0.8 each, and one of class 0, 1/3."""
    logits = torch.tensor([[0.0, 0.1]] * 4)
    method = fitted(logits, torch.tensor([1, 1, 1, 0]))
    assert (method.scale == 0).all()
    torch.testing.assert_close(method(logits)[:, 1], torch.full((4,), (3 * 0.8 + 1 / 3) / 4))


def test_one_class_alone_does_not_get_the_probability_1():
    p = fitted(LOGITS, torch.ones(7, dtype=torch.long))(LOGITS)
    torch.testing.assert_close(p[:, 1], torch.full((7,), 8 / 9, dtype=torch.float64))


def test_scores_that_point_the_wrong_way_are_turned():
    assert (fitted(LOGITS, 1 - TARGET)(LOGITS)[:, 1].diff() < 0).all()


def test_a_top_class_of_probability_1_keeps_its_log_odds_and_a_finite_gradient():
    """In float32 the softmax of (60, 0) is exactly (1, 0)."""
    method = fitted()
    logits = torch.tensor([[0.0, 60.0]], requires_grad=True)
    p = method(logits)
    torch.testing.assert_close(p[0, 0], torch.sigmoid(-(method.scale[1] * 60 + method.bias[1])).float())
    p[0, 0].log().backward()
    torch.testing.assert_close(logits.grad, method.scale[1].float() * torch.tensor([[1.0, -1.0]]))


def test_the_likelihood_of_samples_that_were_all_right_falls():
    """The law allows it only up to its own example; the targets are 5/6 instead of 1."""
    logits, target = 20 * torch.eye(2).repeat(4, 1), torch.arange(8) % 2
    torch.testing.assert_close(fitted(logits, target)(logits).amax(1), torch.full((8,), 5 / 6))


def test_before_the_fit_it_is_softmax():
    assert torch.equal(PlattScaling()(LOGITS), LOGITS.softmax(1))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(0, 2), "no samples"),
        (torch.tensor([[0.0, math.inf]]), "1 of 1 samples have logits"),
        (torch.zeros(1, 1), "two or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        fitted(logits, torch.zeros(len(logits), dtype=torch.long))
