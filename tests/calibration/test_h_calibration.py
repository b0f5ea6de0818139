"""The loss by a slow loop over windows, what it is for right and wrong probabilities, and the fit."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.calibration import HCalibration, TemperatureScaling, h_calibration_loss


def drawn(rows, scale=1.0, classes=4, seed=0):
    """Logits, and labels from the softmax of the same logits at scale 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def slow(logits, target, window, clusters, leave_one_out):
    """One event and window at a time; the clusters by the nearest of centres that begin equally far apart."""
    p = logits.softmax(1).tolist()
    groups = range(len(p[0])) if leave_one_out else [None]
    found = []
    for left_out in groups:
        rows = [(row, y) for row, y in zip(p, target.tolist()) if y != left_out]
        events = [(row[c], float(y == c)) for row, y in rows for c in range(len(row))]
        events.sort(key=lambda event: event[0])
        gaps = []
        for i in range(len(events)):
            near = [e for j, e in enumerate(events) if abs(i - j) <= window // 2]
            gaps.append(abs(math.fsum(a - o for a, o in near)) / (window + 1))
        low, high = events[0][0], events[-1][0]
        centres = [low + (high - low) * k / (clusters - 1) for k in range(clusters)]
        for _ in range(25):
            member = [min(range(clusters), key=lambda k: abs(a - centres[k])) for a, _ in events]
            parts = [[a for (a, _), m in zip(events, member) if m == k] for k in range(clusters)]
            centres = [sum(part) / len(part) if part else c for part, c in zip(parts, centres)]
        means = [[g for g, m in zip(gaps, member) if m == k] for k in range(clusters)]
        found.append(sum(sum(part) / len(part) for part in means if part) / clusters)
    return sum(found) / len(found)


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize(("window", "clusters"), [(6, 4), (20, 3), (400, 2)])
def test_a_slow_loop_gives_the_same(window, clusters, leave_one_out):
    logits, target = drawn(25, scale=2.0)
    settings = {"window": window, "clusters": clusters, "leave_one_out": leave_one_out}
    found = h_calibration_loss(logits, target, **settings)
    assert found.item() == pytest.approx(slow(logits, target, **settings), rel=1e-9)
    soft = F.one_hot(target, 4).double()
    assert h_calibration_loss(logits, soft, **settings) == found


def test_by_hand():
    """Four events of .25, then four of .75; the first sample is wrong. Each is a cluster of its own."""
    logits = torch.tensor([[0.75, 0.25]]).log().expand(4, 2)
    target = torch.tensor([1, 0, 0, 0])
    errors = [0.25 - 1, 0.25, 0.25, 0.25, 0.75, -0.25, -0.25, -0.25]
    gaps = [abs(sum(errors[max(0, i - 3) : i + 4])) / 7 for i in range(8)]
    expected = (sum(gaps[:4]) / 4 + sum(gaps[4:]) / 4) / 2
    found = h_calibration_loss(logits, target, window=6, clusters=2)
    assert found.item() == pytest.approx(expected, abs=1e-7)


def test_it_sinks_from_wrong_to_right_probabilities_and_with_the_rows():
    values = [h_calibration_loss(*drawn(4000, scale=scale)).item() for scale in (5.0, 2.0, 1.0)]
    assert values[0] > 1.5 * values[1] > 6 * values[2]
    assert h_calibration_loss(*drawn(500)).item() > values[2]


def test_leaving_classes_out_is_wrong_for_few_unequal_classes():
    """Without the samples of one of two classes the other always comes true, whatever its probability."""
    few = torch.tensor([[0.75, 0.25]]).log().expand(4000, 2), torch.tensor([0, 0, 0, 1]).repeat(1000)
    many = drawn(2000, classes=40)
    ratios = [h_calibration_loss(*s, leave_one_out=True) / h_calibration_loss(*s) for s in (few, many)]
    assert ratios[0] > 10
    assert 0.8 < ratios[1] < 1.5


def test_the_gradient_agrees_with_finite_differences():
    logits, target = drawn(12, scale=2.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: h_calibration_loss(z, target, window=4, clusters=2), (logits,))


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_fit_corrects_a_temperature(scale):
    ours, known = HCalibration(), TemperatureScaling()
    for calibrator in (ours, known):
        calibrator.fit(*drawn(2000, scale=scale))
    logits, target = drawn(4000, scale=scale, seed=1)

    def likelihood(calibrator):
        return F.nll_loss(calibrator(logits).log(), target).item()

    plain, right = F.cross_entropy(logits, target).item(), F.cross_entropy(logits / scale, target).item()
    assert likelihood(known) < right + 0.002
    assert likelihood(ours) < right + 0.2 * (plain - right)
    assert torch.equal(ours(logits).argmax(1), logits.argmax(1))


def test_a_fit_that_only_makes_the_likelihood_worse_is_the_identity():
    logits, target = drawn(300)
    calibrator = HCalibration(learning_rate=50.0, steps=2)
    calibrator.fit(logits, target)
    assert not calibrator.log_slopes.any()
    torch.testing.assert_close(calibrator(logits), logits.softmax(1))


def test_the_map_is_continuous_and_goes_on_beyond_its_segments():
    calibrator = HCalibration(segments=4)
    calibrator.log_slopes.copy_(torch.tensor([0.5, 2.0, 1.0, 3.0]).log())
    x = torch.tensor([0.0, -10.0, -25.0, -30.0, -100.0, -200.0], dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(x), x], 1)
    mapped = calibrator._mapped(logits, calibrator.log_slopes)
    expected = [-5.0, -12.5, -22.5, -162.5, -462.5]  # .5 * 25 = 12.5, then 2 * 5; all four: 12.5 + 50 + 25 + 75
    torch.testing.assert_close(mapped[1:, 1], torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-3)
    assert calibrator(torch.tensor([[0.0, -math.inf]])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 3}, "window=3 must be even"),
        ({"window": 0}, "window=0"),
        ({"clusters": 0}, "clusters=0 must be >= 1"),
        ({"segments": 0}, "segments=0"),
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": math.inf}, "learning_rate=inf must be finite"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HCalibration(**settings)


def test_what_cannot_be_fitted_is_refused():
    logits, target = drawn(5)
    logits[2, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 5 samples have logits that are not finite"):
        HCalibration().fit(logits, target)
    with pytest.raises(ValueError, match="0 of 0 samples"):
        h_calibration_loss(logits[:0], target[:0])
