import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.optimize import lsq_linear

from lightning_objectives.calibration import SplineCalibration, spline_recalibration
from lightning_objectives.testing import assert_laws

SCORES = torch.tensor([0.2, 0.3, 0.35, 0.42, 0.5, 0.55, 0.61, 0.7, 0.78, 0.85, 0.9, 0.97], dtype=torch.float64)
CORRECT = torch.tensor([0.0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1])


def fitted(logits, target, **settings):
    method = SplineCalibration(**settings)
    method.fit(logits, target)
    return method


def sample(n=600, classes=4):
    logits = 4 * torch.randn(n, classes, dtype=torch.float64)
    return logits, torch.multinomial((0.3 * logits).softmax(1), 1).squeeze(1)


def scipy_spline(t, h, knots):
    """The slopes at t of the natural spline through the knots whose heights fit best."""
    at = np.linspace(0, 1, knots)
    splines = [CubicSpline(at, one, bc_type="natural") for one in np.eye(knots)]
    heights = lsq_linear(np.stack([spline(t) for spline in splines], 1), h, tol=1e-14).x
    return np.stack([spline(t, 1) for spline in splines], 1) @ heights


def test_the_numbers_of_the_authors_code():
    points, values = spline_recalibration(SCORES, CORRECT, knots=4)
    assert torch.equal(points, SCORES)
    np.testing.assert_allclose(values[[0, 1, 2, -1]], [0.158046, 0.256068, 0.300135, 0.851959], atol=1e-6)


@pytest.mark.parametrize("knots", [3, 4, 6])
def test_equals_the_natural_spline_of_scipy(knots):
    h = np.cumsum(CORRECT.numpy() - SCORES.numpy()) / 12
    assert np.abs(h).max() == pytest.approx(0.105, abs=1e-3)
    slopes = scipy_spline(np.linspace(0, 1, 12), h, knots)
    shuffled = torch.randperm(12)
    values = spline_recalibration(SCORES[shuffled], CORRECT[shuffled], knots=knots)[1]
    np.testing.assert_allclose(values, np.clip(SCORES.numpy() + slopes, 0, 1), atol=1e-10)


def test_by_hand_with_a_straight_line():
    """h = -1/6, -1/15, -1/30 at 0, 1/2, 1 has the slope 2/15."""
    values = spline_recalibration(torch.tensor([0.9, 0.5, 0.7]).double(), torch.tensor([1.0, 0, 1]), knots=2)[1]
    torch.testing.assert_close(values, torch.tensor([0.5 + 2 / 15, 0.7 + 2 / 15, 1.0]).double())


def test_scores_that_are_right_are_left():
    """Each score is a rate, so h is 0 but for the order inside of a score, which does not count."""
    scores = torch.tensor([0.25, 0.5, 0.75]).double().repeat_interleave(4)
    points, values = spline_recalibration(scores, torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 1]))
    torch.testing.assert_close(values, points)


def test_equal_scores_do_not_depend_on_their_order():
    scores = torch.tensor([0.3, 0.3, 0.3, 0.6, 0.8, 0.8]).double()
    target = torch.tensor([1.0, 0, 0, 1, 0, 1])
    one, other = (spline_recalibration(scores[i], target[i]) for i in (torch.arange(6), torch.arange(5, -1, -1)))
    torch.testing.assert_close(one, other)
    assert len(one[0]) == 3


@pytest.mark.parametrize("n", [1, 2])
def test_less_samples_than_knots(n):
    points, values = spline_recalibration(torch.full((n,), 0.6), torch.ones(n))
    assert points.tolist() == pytest.approx([0.6])
    assert values.isfinite().all()


def test_the_others_share_the_rest_in_their_proportions():
    logits, target = sample()
    method, p = fitted(logits, target), logits.softmax(1)
    ours, (scores, top) = method(logits), p.max(1)
    expected = np.interp(scores, method.points, method.values)
    np.testing.assert_allclose(ours.gather(1, top[:, None]).squeeze(1), expected, atol=1e-12)
    torch.testing.assert_close(ours.sum(1), torch.ones(600).double())
    others = p.scatter(1, top[:, None], 0)
    torch.testing.assert_close(
        ours.scatter(1, top[:, None], 0), others * ((1 - ours.gather(1, top[:, None])) / others.sum(1, keepdim=True))
    )


def test_the_error_of_the_top_class_falls_on_new_rows():
    method = fitted(*sample(20000))
    logits, target = sample(20000)
    top = logits.argmax(1)

    def error(p):
        scores = p.gather(1, top[:, None]).squeeze(1)
        return ((top == target).double() - scores)[scores.argsort()].cumsum(0).abs().max() / len(p)

    assert error(method(logits)) < 0.02 < 0.2 < error(logits.softmax(1))


def test_beyond_the_scores_of_the_fit_the_function_is_constant_and_the_others_stay_finite():
    logits, target = sample(50)
    method = fitted(logits, target)
    p = method(torch.tensor([[2000.0, 0, -1, -1]]))
    assert p[0, 0].item() == pytest.approx(method.values[-1].item())
    torch.testing.assert_close(p[0, 1:] / p[0, 1], torch.tensor([1, math.exp(-1), math.exp(-1)]))
    method.values.fill_(0.7)
    torch.testing.assert_close(method(torch.tensor([[2000.0, 0, 0, 0]])), torch.tensor([[0.7, 0.1, 0.1, 0.1]]))


def test_only_the_top_class_is_looked_at():
    """h falls in 10 equal steps, over 9/10 of which the line has its slope; the last class stays as it was."""
    logits, target = torch.tensor([[4.0, 3.0, -9.0]] * 10), torch.tensor([0] * 3 + [2] * 7)
    p, ours = logits[0].softmax(0), fitted(logits, target)(logits)[0]
    torch.testing.assert_close(ours[0], p[0] - 0.9 * (p[0] - 0.3))
    torch.testing.assert_close(ours[2] / ours[1], p[2] / p[1])


def test_a_soft_target_counts_as_its_share():
    logits = sample(8, 3)[0]
    soft = torch.tensor([[0.25, 0.75, 0.0]]).expand(8, 3)
    scores, top = logits.softmax(1).max(1)
    expected = spline_recalibration(scores, soft[0, top])[1]
    torch.testing.assert_close(fitted(logits, soft).values, expected)


def test_a_straight_line_may_raise_the_negative_log_likelihood():
    with pytest.raises(AssertionError, match="the NLL of the fitted set must not rise"):
        assert_laws(SplineCalibration(knots=2))


def test_before_the_fit_it_is_softmax():
    logits = sample()[0]
    assert torch.equal(SplineCalibration()(logits), logits.softmax(1))


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(0, 3), "no samples"), (torch.tensor([[0.0, math.nan, 1.0]]), "1 of 1 samples have logits")],
)
def test_what_cannot_be_fitted_is_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        fitted(logits, torch.zeros(len(logits), dtype=torch.long))
    with pytest.raises(ValueError, match="knots=1 must be 2 or more"):
        SplineCalibration(knots=1)
    with pytest.raises(ValueError, match="knots=1 must be 2 or more"):
        spline_recalibration(SCORES, CORRECT, knots=1)
