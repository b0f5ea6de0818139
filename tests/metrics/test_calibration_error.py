import sys

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassCalibrationError

from lightning_objectives.metrics import CalibrationError, calibration_error
from lightning_objectives.metrics.calibration_error import CELLS

NORMS = ("l1", "l2", "max")
BINNINGS = ("equal_width", "equal_mass")


def data(n=400, c=5, seed=0, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, c, generator=generator)
    return logits, torch.randint(c, (n,), generator=generator)


def reference(confidence, accuracy, groups, norm):
    """The definition, over lists of row numbers."""
    gaps = [(len(g), abs(np.mean(accuracy[g]) - np.mean(confidence[g]))) for g in groups if len(g)]
    n = sum(size for size, _ in gaps)
    if norm == "l1":
        return sum(size / n * gap for size, gap in gaps)
    if norm == "l2":
        return sum(size / n * gap**2 for size, gap in gaps) ** 0.5
    return max(gap for _, gap in gaps)


def top_label(logits, target):
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    predicted = p.argmax(1)
    accuracy = (predicted == target.numpy()) if target.ndim == 1 else target.numpy()[np.arange(len(p)), predicted]
    return p.max(1), accuracy.astype(float)


@pytest.mark.parametrize("norm", NORMS)
def test_hand_worked(norm):
    # Two bins over (0, 1/2], (1/2, 1]: confidences .4, .5 (both wrong) | .6, .9, 1 (right, wrong, right).
    p = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.5, 0.0], [0.6, 0.4, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    target = torch.tensor([1, 1, 0, 1, 2])
    gaps = (0.45, 2.5 / 3 - 2 / 3)
    expected = {
        "l1": 0.4 * gaps[0] + 0.6 * gaps[1],
        "l2": (0.4 * gaps[0] ** 2 + 0.6 * gaps[1] ** 2) ** 0.5,
        "max": gaps[0],
    }[norm]
    got = calibration_error(p, target, norm=norm, num_bins=2, from_logits=False)
    assert float(got) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_bins", [1, 10, 15])
@pytest.mark.parametrize("soft", [False, True])
def test_equal_width_against_the_definition(norm, num_bins, soft):
    logits, target = data()
    if soft:
        target = torch.rand(400, 5, generator=torch.Generator().manual_seed(3)).softmax(1)
    confidence, accuracy = top_label(logits, target)
    bins = [np.flatnonzero((confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)) for b in range(num_bins)]
    got = calibration_error(logits, target, norm=norm, num_bins=num_bins)
    assert float(got) == pytest.approx(reference(confidence, accuracy, bins, norm), rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_equal_width_against_torchmetrics(norm):
    logits, target = data()
    theirs = MulticlassCalibrationError(5, n_bins=15, norm=norm)(logits, target)
    torch.testing.assert_close(calibration_error(logits, target, norm=norm), theirs)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("sharpness", [0.1, 2.0, 20.0])
def test_equal_mass_against_a_sort(norm, sharpness):
    logits, target = data(n=30_000, sharpness=sharpness)
    target = torch.where(torch.rand(30_000, generator=torch.Generator().manual_seed(5)) < 0.6, logits.argmax(1), target)
    confidence, accuracy = top_label(logits, target)
    keep = confidence < 1 - 1e-7  # equal confidences have no order
    confidence, accuracy, logits, target = confidence[keep], accuracy[keep], logits[keep], target[keep]
    groups = np.array_split(np.argsort(confidence, kind="stable"), 15)
    got = calibration_error(logits, target, norm=norm, binning="equal_mass")
    # The rows of 14 border cells stand in for each other.
    assert float(got) == pytest.approx(reference(confidence, accuracy, groups, norm), abs=0.004)


def test_equal_mass_has_equal_masses_and_loses_nothing():
    logits, target = data(n=1000)
    metric = CalibrationError(binning="equal_mass", num_bins=7)
    metric.update(logits, target)
    confidence, accuracy = top_label(logits, target)
    bins = metric.bins()
    torch.testing.assert_close(bins.rows, torch.full((7,), 1000 / 7, dtype=torch.float64))
    assert float(bins.confidence.sum()) == pytest.approx(confidence.sum(), rel=1e-6)
    assert float(bins.accuracy.sum()) == pytest.approx(accuracy.sum())
    means = bins.confidence / bins.rows
    assert (means.diff() > 0).all()


def test_equal_confidences_are_shared_in_proportion_whatever_their_order():
    # Twelve rows alike, a third of them right: every bin of any number has the gap |1/3 - .9|.
    p = torch.tensor([[0.9, 0.1]]).expand(12, 2)
    target = torch.tensor([0] * 4 + [1] * 8)
    for num_bins in (1, 2, 5):
        for order in (target, target.flip(0)):
            got = calibration_error(p, order, norm="max", num_bins=num_bins, binning="equal_mass", from_logits=False)
            assert float(got) == pytest.approx(0.9 - 1 / 3, rel=1e-6)


def test_a_row_may_be_divided_between_bins():
    # Two rows in three bins: the middle one holds half of each, (1 + 0) / 2 against (.9 + .6) / 2.
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    got = calibration_error(p, torch.tensor([0, 1]), num_bins=3, binning="equal_mass", from_logits=False)
    assert float(got) == pytest.approx((0.1 + 0.25 + 0.6) / 3, rel=1e-6)


def test_near_certainty_is_resolved():
    # Confidences of 1 - 1e-5 to 1 - 1e-2, where a uniform grid has one cell: equal mass tells them apart.
    doubt = torch.logspace(-5, -2, 1000, dtype=torch.float64)
    metric = CalibrationError(binning="equal_mass", num_bins=10, from_logits=False)
    metric.update(torch.stack([1 - doubt, doubt], 1), torch.zeros(1000, dtype=torch.long))
    bins = metric.bins()
    means = 1 - bins.confidence / bins.rows
    expected = doubt.flip(0).reshape(10, 100).mean(1)
    torch.testing.assert_close(means, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("binning", BINNINGS)
def test_perfect_and_certain(binning):
    certain = torch.eye(4)
    assert calibration_error(certain, torch.arange(4), binning=binning, from_logits=False) == 0
    wrong = torch.arange(4).roll(1)
    assert calibration_error(certain, wrong, binning=binning, from_logits=False) == 1
    assert calibration_error(certain, certain, binning=binning, from_logits=False) == 0
    soft = torch.tensor([[0.7, 0.2, 0.1]])
    assert calibration_error(soft, soft, binning=binning, from_logits=False) == 0


def test_a_confidence_on_an_edge_belongs_below():
    metric = CalibrationError(num_bins=5, from_logits=False)
    metric.update(torch.tensor([[0.6, 0.4], [0.8, 0.2], [1.0, 0.0]]), torch.tensor([0, 0, 0]))
    assert metric.bins().rows.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("binning", BINNINGS)
def test_the_metric_equals_the_function(norm, binning):
    logits, target = data()
    metric = CalibrationError(norm=norm, binning=binning, num_bins=9)
    for batch in zip(logits.split(150), target.split(150)):
        metric.update(*batch)
    torch.testing.assert_close(
        metric.compute(), calibration_error(logits, target, norm=norm, binning=binning, num_bins=9)
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("binning", BINNINGS)
def test_nan_and_no_rows(norm, binning):
    logits, target = data()
    assert calibration_error(logits[:0], target[:0], norm=norm, binning=binning).isnan()
    logits[0, 0] = torch.nan
    assert calibration_error(logits, target, norm=norm, binning=binning).isnan()


@pytest.mark.parametrize("binning", BINNINGS)
def test_forty_million_rows(binning):
    # Over-confident by .05 in every row; sums in float32 stop growing at 2^24 rows.
    rows = 2**20
    p = torch.tensor([[0.9, 0.1]]).expand(rows, 2)
    target = (torch.arange(rows) % 20 >= 17).long()
    metric = CalibrationError(binning=binning, from_logits=False)
    metric.update(p, target)
    once = {name: state.clone() for name, state in metric.metric_state.items()}
    for _ in range(38):
        metric.merge_state(once)
    metric.update(p, target)
    assert int(metric.bins().rows.sum()) == 40 * rows
    assert float(metric.compute()) == pytest.approx(0.05, abs=1e-5)


def test_the_state_is_as_large_as_promised():
    for binning, cells in (("equal_width", 15), ("equal_mass", CELLS)):
        metric = CalibrationError(binning=binning)
        size = sum(state.nbytes for state in metric.metric_state.values() if state.ndim)
        assert size == 24 * cells


def test_other_bins_cannot_be_merged():
    for settings in ({"num_bins": 1}, {"binning": "equal_mass"}):
        with pytest.raises(ValueError, match="to be present"):
            CalibrationError().merge_state(CalibrationError(**settings))


def test_norms_of_the_same_bins_share_them_in_a_collection():
    metrics = {norm: CalibrationError(norm=norm) for norm in NORMS} | {"mass": CalibrationError(binning="equal_mass")}
    collection = MetricCollection(metrics)
    for seed in (0, 1):
        collection.update(*data(seed=seed))
    assert sorted(map(len, collection.compute_groups.values())) == [1, 3]
    whole = [torch.cat(parts) for parts in zip(data(seed=0), data(seed=1))]
    for norm in NORMS:
        torch.testing.assert_close(collection.compute()[norm], calibration_error(*whole, norm=norm))


def test_settings_that_cannot_be():
    for settings, message in (
        ({"norm": "l3"}, "norm='l3'"),
        ({"num_bins": 0}, "num_bins=0"),
        ({"binning": "quantile"}, "binning='quantile'"),
    ):
        with pytest.raises(ValueError, match=message):
            CalibrationError(**settings)
        with pytest.raises(ValueError, match=message):
            calibration_error(*data(), **settings)


@pytest.mark.parametrize("binning", BINNINGS)
def test_the_reliability_diagram(binning, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logits, target = data(n=5000)
    metric = CalibrationError(binning=binning)
    metric.update(logits, torch.where(torch.arange(5000) % 2 == 0, logits.argmax(1), target))
    before = metric.compute()
    figure, axes = metric.plot()
    assert f"{before:.4f}" in axes.get_title()
    assert np.array_equal(axes.lines[0].get_data(), [[0, 1], [0, 1]]), "where the calibrated ones are"
    x, y = axes.lines[1].get_data()
    bins = metric.bins()
    filled = bins.rows > 0
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], (bins.rows / 5000)[filled])
    np.testing.assert_allclose(x, (bins.confidence / bins.rows)[filled])
    np.testing.assert_allclose(y, (bins.accuracy / bins.rows)[filled])
    figure.savefig(tmp_path / "diagram.png")
    assert metric.plot(ax=axes)[1] is axes
    plt.close(figure)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    metric = CalibrationError()
    metric.update(*data())
    with pytest.raises(ModuleNotFoundError, match=r"lightning-objectives\[plots\]"):
        metric.plot()
