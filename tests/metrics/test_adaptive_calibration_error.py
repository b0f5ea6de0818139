import numpy as np
import pytest
import torch
from torch_uncertainty.metrics.classification import AdaptiveCalibrationError as TopLabelOnly

from lightning_objectives.metrics import (
    AdaptiveCalibrationError,
    adaptive_calibration_error,
    calibration_error,
    classwise_calibration_error,
)

P = torch.tensor(
    [[0.72, 0.17, 0.11], [0.53, 0.31, 0.16], [0.18, 0.61, 0.21], [0.13, 0.14, 0.73], [0.46, 0.33, 0.21],
     [0.04, 0.91, 0.05], [0.27, 0.38, 0.35]]
)  # fmt: skip
Y = torch.tensor([0, 1, 1, 2, 0, 2, 0])


def slow(p, y, ranges):
    """The paper's form, by sorting; equal parts if the ranges divide the rows."""
    gaps = []
    for c in range(p.shape[1]):
        order = np.argsort(p[:, c], kind="stable")
        for part in np.array_split(order, ranges):
            gaps.append(abs(np.mean(y[part] == c) - np.mean(p[part, c])))
    return np.mean(gaps)


def test_by_hand():
    """Class 1 has .1, .2 with one of two, |1/2 - .15|, and .6, .7 with both, .35; class 0 has the same gaps."""
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    value = adaptive_calibration_error(p, torch.tensor([0, 1, 1, 1]), num_ranges=2, from_logits=False)
    assert value.item() == pytest.approx(0.35)


def test_with_few_rows_a_part_of_a_row_is_not_a_row():
    """Of 7 rows the paper's form takes 3, 2 and 2; ours are of 7/3, as if each row were there three times."""
    p, y = P.numpy().astype(float), Y.numpy()
    assert slow(p, y, 3) == pytest.approx(0.232778, abs=1e-6)  # the number of another program
    ours = adaptive_calibration_error(P, Y, num_ranges=3, from_logits=False).item()
    assert ours == pytest.approx(slow(np.repeat(p, 3, 0), np.repeat(y, 3), 3), abs=1e-6)
    whole = adaptive_calibration_error(P, Y, num_ranges=7, from_logits=False).item()
    assert whole == pytest.approx(slow(p, y, 7), abs=1e-6)


@pytest.mark.parametrize("ranges", [1, 4, 20])
def test_equals_a_slow_loop_but_for_the_width_of_a_cell(ranges):
    logits, target = 2 * torch.randn(400, 5).double(), torch.randint(5, (400,))
    ours = adaptive_calibration_error(logits, target, num_ranges=ranges).item()
    assert ours == pytest.approx(slow(logits.softmax(1).numpy(), target.numpy(), ranges), rel=0.01)


def test_one_range_is_one_bin():
    ours = adaptive_calibration_error(P, Y, num_ranges=1, from_logits=False)
    torch.testing.assert_close(ours, classwise_calibration_error(P, Y, num_bins=1, from_logits=False))


def test_what_torch_uncertainty_calls_adaptive_looks_at_the_predicted_class_alone():
    logits, target = 2 * torch.randn(400, 5), torch.randint(5, (400,))
    theirs = TopLabelOnly(task="multiclass", num_classes=5, num_bins=10)
    theirs.update(logits.softmax(1), target)
    top = calibration_error(logits, target, num_bins=10, binning="equal_mass")
    torch.testing.assert_close(theirs.compute(), top, rtol=0.01, atol=0)
    assert adaptive_calibration_error(logits, target, num_ranges=10) < top / 2


def test_equal_probabilities_do_not_depend_on_their_order():
    p = torch.tensor([[0.6, 0.4]]).repeat(6, 1)
    target = torch.tensor([0, 0, 0, 0, 1, 1])
    for order in (torch.arange(6), torch.arange(5, -1, -1)):
        value = adaptive_calibration_error(p, target[order], num_ranges=3, from_logits=False)
        assert value.item() == pytest.approx(4 / 6 - 0.6, abs=1e-6)


def test_more_ranges_than_rows_without_rows_and_with_nan():
    assert adaptive_calibration_error(P, Y, num_ranges=100, from_logits=False).isfinite()
    metric = AdaptiveCalibrationError()
    metric.update(torch.zeros(1, 3), torch.tensor([-100]))
    assert metric.compute().isnan()
    assert adaptive_calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).isnan()
    assert adaptive_calibration_error(torch.full((2, 3), torch.nan), torch.tensor([0, 1])).isnan()


def test_no_range_is_refused():
    with pytest.raises(ValueError, match="num_ranges=0 must be >= 1"):
        AdaptiveCalibrationError(num_ranges=0)
    with pytest.raises(ValueError, match="num_ranges=0 must be >= 1"):
        adaptive_calibration_error(P, Y, num_ranges=0)
