import numpy as np
import pytest
import torch
from torch_uncertainty.metrics.classification import ClasswiseCalibrationError as Theirs

from lightning_objectives.metrics import ClasswiseCalibrationError, classwise_calibration_error

P = torch.tensor(
    [[0.72, 0.17, 0.11], [0.53, 0.31, 0.16], [0.18, 0.61, 0.21], [0.13, 0.14, 0.73], [0.46, 0.33, 0.21],
     [0.04, 0.91, 0.05], [0.27, 0.38, 0.35]]
)  # fmt: skip
Y = torch.tensor([0, 1, 1, 2, 0, 2, 0])


def slow(p, y, bins):
    total = 0.0
    for c in range(p.shape[1]):
        for b in range(bins):
            rows = [n for n in range(len(p)) if b / bins < p[n, c] <= (b + 1) / bins or (b == 0 and p[n, c] == 0)]
            total += len(rows) / len(p) * abs(np.mean(y[rows] == c) - np.mean(p[rows, c])) if rows else 0
    return total / p.shape[1]


def test_by_hand():
    """One bin: the mean probabilities 2.33, 2.85, 1.82 of 7 against the counts 3, 2, 2: (.67 + .85 + .18) / 21."""
    assert classwise_calibration_error(P, Y, num_bins=1, from_logits=False).item() == pytest.approx(1.70 / 21, abs=1e-6)


def test_the_number_of_another_program():
    assert classwise_calibration_error(P, Y, num_bins=5, from_logits=False).item() == pytest.approx(0.224762, abs=1e-6)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_equals_a_slow_loop_and_torch_uncertainty(bins):
    logits, target = 2 * torch.randn(200, 5), torch.randint(5, (200,))
    p = logits.double().softmax(1)
    ours = classwise_calibration_error(logits.double(), target, num_bins=bins).item()
    assert ours == pytest.approx(slow(p.numpy(), target.numpy(), bins), rel=1e-6)
    theirs = Theirs(num_classes=5, num_bins=bins)
    theirs.update(p, target)
    assert theirs.compute().item() == pytest.approx(ours, rel=1e-4)


def test_an_edge_belongs_to_the_bin_below():
    """Class 0 has 1/2 and 1/4 in the bin (0, 1/2], |1 - 3/4|; class 1 has .3 and .45 in two bins; class 2 has .4."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.55, 0.2]])
    value = classwise_calibration_error(p, torch.tensor([0, 1]), num_bins=2, from_logits=False)
    assert value.item() == pytest.approx((0.25 + 0.3 + 0.45 + 0.4) / 6)


def test_what_is_calibrated_in_the_top_class_may_be_wrong_in_the_others():
    """The top class is right in half of the rows, as it says; the second takes all of the rest."""
    p = torch.tensor([[0.5, 0.3, 0.2]]).repeat(10, 1)
    value = classwise_calibration_error(p, torch.tensor([0, 1] * 5), from_logits=False)
    assert value.item() == pytest.approx((0 + 0.2 + 0.2) / 3)


def test_without_rows_or_with_nan_it_is_nan():
    metric = ClasswiseCalibrationError()
    metric.update(torch.zeros(1, 3), torch.tensor([-100]))
    assert metric.compute().isnan()
    assert classwise_calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).isnan()
    assert classwise_calibration_error(torch.full((2, 3), torch.nan), torch.tensor([0, 1])).isnan()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_bins=0 must be >= 1"):
        ClasswiseCalibrationError(num_bins=0)
    with pytest.raises(ValueError, match="num_bins=0 must be >= 1"):
        classwise_calibration_error(P, Y, num_bins=0)
    metric = ClasswiseCalibrationError()
    metric.update(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"\(2, 4\) have 4 classes, but those before had 3"):
        metric.update(torch.zeros(2, 4), torch.tensor([0, 1]))


def test_a_transposed_table_gives_the_same_value_without_a_warning():
    """Probabilities by class, such as those of one calibrator for each class, are often a transposed table."""
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    target = torch.tensor([0, 1, 1])
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise torch warns only once in a process
    try:
        values = [classwise_calibration_error(q, target, from_logits=False) for q in (p, p.T.contiguous().T)]
    finally:
        torch.set_warn_always(always)
    assert values[0] == values[1]
