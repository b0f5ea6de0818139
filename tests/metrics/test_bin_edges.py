"""Each confidence falls into the bin that the definition says, on an edge and one step beside it."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_objectives.metrics import CalibrationError, _numpy_cells, calibration_error

DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.float32, torch.float16: np.float32}
"""The types of predictions, each with the type that the confidence is compared in."""


def nearest(number, kind):
    """The float of a type that is nearest to a fraction."""
    guess = kind(float(number))
    around = (np.nextafter(guess, kind(0)), guess, np.nextafter(guess, kind(2)))
    return min(around, key=lambda value: abs(Fraction(float(value)) - number))


def bin_of(confidence, bins, kind):
    """The number of the bin ((b - 1) / B, b / B], by a loop over the edges."""
    for b in range(1, bins):
        if Fraction(float(confidence)) <= Fraction(float(nearest(Fraction(b, bins), kind))):
            return b - 1
    return bins - 1


@st.composite
def confidences(draw):
    """A number of bins, a type, and confidences of two classes or more: on edges and one step beside them."""
    bins, dtype = draw(st.integers(1, 60)), draw(st.sampled_from(list(DTYPES)))
    edges = draw(st.lists(st.integers(1, bins), min_size=1, max_size=8))
    sides = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=len(edges), max_size=len(edges)))
    values = torch.tensor([k / bins for k in edges], dtype=torch.float64).to(dtype)
    towards = torch.tensor(sides, dtype=dtype) * 2 + (values * (torch.tensor(sides) == 0)).to(dtype)
    moved = torch.stack([torch.nextafter(v, t) for v, t in zip(values, towards)])
    return bins, moved.clamp(max=1)


def rows_of(values):
    """Rows of 60 probabilities and more, of which the first is the greatest, and that sum to 1 nearly."""
    rest = (1 - values.double())[:, None].expand(-1, 64) / 64
    return torch.cat([values[:, None], rest.to(values.dtype)], 1)


def rows_and_error(values, bins, way):
    """The number of rows in each bin of the metric, by one of its two ways, and the value of the function."""
    preds, target = rows_of(values), torch.zeros(len(values), dtype=torch.long)
    metric = CalibrationError(num_bins=bins, from_logits=False)
    with pytest.MonkeyPatch.context() as patch:
        if way == "general":
            patch.setitem(CalibrationError.update.__globals__, "numpy_cells", lambda *_, **__: None)
        metric.update(preds, target)
    return metric.bins().rows.tolist(), float(calibration_error(preds, target, num_bins=bins, from_logits=False))


@settings(deadline=None, max_examples=120)
@given(confidences())
def test_every_confidence_falls_into_its_bin(drawn):
    bins, values = drawn
    values = values[values > 1 / 32]  # smaller ones are not the greatest of their row
    expected, means = [0] * bins, [[] for _ in range(bins)]
    for value in values.tolist():
        place = bin_of(value, bins, DTYPES[values.dtype])
        expected[place] += 1
        means[place].append(value)
    ece = sum(len(m) / max(1, len(values)) * abs(1 - sum(m) / len(m)) for m in means if m)
    for way in ("numpy", "general"):
        rows, value = rows_and_error(values, bins, way)
        assert rows == expected, (bins, values, way)
        assert len(values) == 0 or value == pytest.approx(ece, abs=1e-6)


def test_the_numpy_way_is_taken():
    """Otherwise the test above would compare one way with itself."""
    values = rows_of(torch.tensor([0.25, 0.5]))
    edges = np.array([0.25], np.float32)
    assert _numpy_cells.numpy_cells(values, torch.zeros(2, dtype=torch.long), edges, from_logits=False) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_that_linspace_misses(dtype):
    """By linspace the float64 edge 9/11 lies one step too low, so that two confidences of one bin fell into two."""
    top = torch.tensor([9 / 11, 8.5 / 11], dtype=dtype)
    preds, target = torch.stack([top, 1 - top], 1), torch.tensor([0, 1])
    metric = CalibrationError(norm="max", num_bins=11, from_logits=False)
    metric.update(preds, target)
    for value in (metric.compute(), calibration_error(preds, target, norm="max", num_bins=11, from_logits=False)):
        assert float(value) == pytest.approx(17.5 / 22 - 0.5, rel=1e-6)
