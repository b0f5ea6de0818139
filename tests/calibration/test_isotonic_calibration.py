import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.isotonic import IsotonicRegression

from lightning_objectives.calibration import IsotonicCalibration, isotonic_regression


def fitted(logits, target):
    method = IsotonicCalibration()
    method.fit(logits, target)
    return method


def sample(n=300, classes=4):
    logits = 2 * torch.randn(n, classes)
    return logits, torch.multinomial((logits * torch.linspace(0.3, 2, classes)).softmax(1), 1).squeeze(1)


def slow(x, y):
    """The greatest of the least means: max over i <= k of the min over j >= k of the mean of y[i..j]."""
    order = np.argsort(x)
    x, y = x[order], y[order]
    return [
        max(min(y[i : j + 1].mean() for j in range(k, len(y)) if x[j] != x[min(j + 1, len(y) - 1)] or j == len(y) - 1)
            for i in range(k + 1) if i == 0 or x[i] != x[i - 1])
        for k in range(len(y))
    ]  # fmt: skip


def test_by_hand():
    """The equal 0.2 are pooled first: (1 + 0) / 2, then with the 0 at 0.4: 1/3."""
    x = torch.tensor([0.1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.8, 0.8, 0.9], dtype=torch.float64)
    points, values = isotonic_regression(x, torch.tensor([0.0, 1, 0, 0, 1, 0, 1, 1, 1]))
    assert points.tolist() == [0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9]
    torch.testing.assert_close(values, torch.tensor([0, 1 / 3, 1 / 3, 0.5, 0.5, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_formula_of_least_means_and_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 12, 30) / 12 if seed % 2 else draw.random(30)
    y = draw.random(30) + (x if seed > 1 else -x)
    points, values = (part.numpy() for part in isotonic_regression(torch.tensor(x), torch.tensor(y)))
    np.testing.assert_allclose(np.interp(np.sort(x), points, values), slow(x, y))
    theirs = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    grid = np.linspace(-0.5, 1.5, 401)
    np.testing.assert_allclose(np.interp(grid, points, values), theirs.predict(grid), atol=1e-14)


def test_one_function_for_each_class_then_the_sum():
    logits, target = sample()
    new = torch.cat([sample(200)[0], logits])
    p = new.double().softmax(1).numpy()
    columns = [
        IsotonicRegression(out_of_bounds="clip").fit(logits.double().softmax(1).numpy()[:, c], target == c)
        for c in range(4)
    ]
    expected = np.stack([column.predict(p[:, c]) for c, column in enumerate(columns)], 1)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(fitted(logits, target)(new.double()).numpy(), expected, atol=1e-12)
    assert fitted(logits, target)(new.half()).dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_likelihood_of_the_fitted_set_never_falls(classes):
    """Each class keeps its mean, so the sums of the rows have the mean 1, and their logarithms a mean of 0 at most."""
    for n in (6, 20, 60):
        logits, target = sample(n, classes)
        p = fitted(logits, target)(logits.double())
        assert F.nll_loss(p.log(), target) <= F.cross_entropy(logits.double(), target) + 1e-12


def test_a_row_without_any_probability_is_uniform():
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]])
    method = fitted(logits, torch.tensor([0, 1, 2, 0]))
    method.values.zero_()
    torch.testing.assert_close(method(logits), torch.full((4, 3), 1 / 3))


def test_a_soft_target_is_the_same_as_repeated_samples():
    logits, soft = sample(6, 3)[0], torch.tensor([[0.25, 0.75, 0.0]]).expand(6, 3)
    repeated = fitted(logits.repeat_interleave(4, 0), torch.tensor([0, 1, 1, 1]).repeat(6))
    torch.testing.assert_close(fitted(logits, soft)(logits), repeated(logits))


def test_before_the_fit_it_is_softmax_and_a_gradient_flows_through_both():
    logits, target = sample()
    assert torch.equal(IsotonicCalibration()(logits), logits.softmax(1))
    logits.requires_grad_()
    fitted(logits, target)(logits).square().sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(0, 3), "no samples"), (torch.tensor([[0.0, math.inf, 1.0]]), "1 of 1 samples have logits")],
)
def test_what_cannot_be_fitted_is_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        fitted(logits, torch.zeros(len(logits), dtype=torch.long))


def test_a_new_fit_forgets_the_first():
    fitted_twice, (logits, target) = fitted(*sample(500, 3)), sample(50)
    fitted_twice.fit(logits, target)
    assert torch.equal(fitted_twice(logits), fitted(logits, target)(logits))
