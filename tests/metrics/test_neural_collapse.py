import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_objectives.metrics import NeuralCollapse, neural_collapse

H = torch.tensor([[1, 0], [1.2, 0.1], [-0.5, 1], [-0.4, 0.8], [-0.6, -0.9], [-0.5, -1.1]], dtype=torch.float64)
Y = torch.tensor([0, 0, 1, 1, 2, 2])
W = torch.tensor([[1, 0], [-0.5, 0.8], [-0.5, -0.9]], dtype=torch.float64)


def numbers(*arguments):
    return {name: value.item() for name, value in neural_collapse(*arguments).items()}


def slow(h, z, y, w):
    """The formulas in NumPy, with D x D matrices."""
    c = len(w)
    means = np.array([h[y == k].mean(0) for k in range(c)])
    m = means - means.mean(0)
    within = sum(np.outer(row - means[k], row - means[k]) for row, k in zip(h, y)) / len(h)
    between = sum(np.outer(row, row) for row in m) / c
    norms = np.linalg.norm(m, axis=1)
    pairs = [(i, j) for i in range(c) for j in range(c) if i != j]
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-8)) / c,
        "nc2_norms": norms.std(ddof=1) / norms.mean(),
        "nc2_angles": np.mean([abs(m[i] @ m[j] / norms[i] / norms[j] + 1 / (c - 1)) for i, j in pairs]),
        "nc3": ((w / np.linalg.norm(w) - m / np.linalg.norm(m)) ** 2).sum(),
        "nc4": np.mean([z[n].argmax() != ((means - h[n]) ** 2).sum(1).argmin() for n in range(len(h))]),
    }


def simplex(classes, features):
    """Rows of equal norm and equal angles, in the first dimensions of a random rotation."""
    points = torch.eye(classes).double() - 1 / classes
    rotation = torch.linalg.qr(torch.randn(features, features).double()).Q
    return points @ rotation[:classes]


def test_the_numbers_of_another_program():
    """The trace alone is .022123."""
    values = numbers(H, H @ W.T, Y, W)
    expected = {"nc1": 0.022123 / 3, "nc2_norms": 0.050693, "nc2_angles": 0.058450, "nc3": 0.003482, "nc4": 0.0}
    assert values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("classes", "features"), [(3, 8), (6, 4), (2, 1)], ids=["wide", "narrow", "one feature"])
def test_equals_the_formulas(classes, features):
    y = torch.arange(50) % classes
    y[:7] = 0
    h = torch.randn(50, features).double() + torch.randn(classes, features).double()[y] + 5
    w = torch.randn(classes, features).double()
    z = torch.randn(50, classes)
    assert numbers(h, z, y, w) == pytest.approx(slow(h.numpy(), z.numpy(), y.numpy(), w.numpy()), rel=1e-5, abs=1e-6)


def test_a_complete_collapse_is_0_at_any_scale_and_place():
    points = simplex(4, 9)
    y = torch.arange(12) % 4
    values = numbers(3 * points[y] + 100, points[y] @ points.T, y, 0.1 * points)
    assert values == pytest.approx(dict.fromkeys(values, 0.0), abs=1e-6)


def test_each_value_sees_its_own_fault():
    points = simplex(4, 9)
    y = torch.arange(12) % 4
    noise = 0.01 * torch.randn(12, 9).double()
    assert numbers(points[y] + noise, points[y] @ points.T, y, points)["nc1"] > 1e-5
    longer = points * torch.tensor([2.0, 1, 1, 1]).double()[:, None]
    assert numbers(longer[y], points[y] @ points.T, y, points)["nc2_norms"] > 0.1
    assert numbers(points[y], points[y] @ points.T, y, longer)["nc3"] > 0.01
    wrong = points[y] @ points.T
    wrong[0] = torch.tensor([0.0, 1, 0, 0])
    assert numbers(points[y], wrong, y, points)["nc4"] == pytest.approx(1 / 12)


def test_unequal_numbers_of_rows_leave_the_centre():
    points = simplex(3, 5)
    y = torch.tensor([0] * 20 + [1, 2])
    values = numbers(points[y], points[y] @ points.T, y, points)
    assert values == pytest.approx(dict.fromkeys(values, 0.0), abs=1e-6)


@pytest.mark.parametrize(
    ("h", "y"),
    [(H, torch.tensor([0, 0, 1, 1, 1, 1])), (torch.ones(6, 2), Y), (H * math.inf, Y), (H[:0], Y[:0])],
    ids=["a class without rows", "equal means", "infinite", "no rows"],
)
def test_what_has_no_value_is_nan(h, y):
    values = numbers(h, torch.zeros(len(h), 3), y, W)
    assert all(math.isnan(value) for value in values.values())


def head(weight=W):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.float())
    return layer


def test_batches_are_one_and_ignored_rows_do_not_count():
    metric = NeuralCollapse()
    for rows in (slice(0, 1), slice(1, 6)):
        metric.update(H[rows].float(), (H @ W.T)[rows], head(), Y[rows])
    metric.update(torch.full((1, 2), 99.0), torch.zeros(1, 3), head(), torch.tensor([-100]))
    ours = {name: value.item() for name, value in metric.compute().items()}
    assert ours == pytest.approx(numbers(H, H @ W.T, Y, W), rel=1e-4, abs=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"from 0 to 3: classes must lie in \[0, 3\)"):
        neural_collapse(H, H @ W.T, Y + (Y == 2), W)
    with pytest.raises(ValueError, match="head is a ReLU without a weight"):
        NeuralCollapse().update(H, H @ W.T, nn.ReLU(), Y)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        neural_collapse(H, H @ W.T, Y, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        neural_collapse(H, torch.zeros(5, 3), Y, W)
