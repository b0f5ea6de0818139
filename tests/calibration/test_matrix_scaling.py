import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch_uncertainty.post_processing import MatrixScaler

from lightning_objectives.calibration import MatrixScaling, best_matrix_and_bias

LOGITS = torch.tensor(
    [[2, 0, -1], [1.5, 1, 0], [0, 2, 0.5], [0.5, 1.2, -0.3], [-1, 0, 1.5],
     [0, 0.5, 1], [1, 0.2, 0.8], [0.3, 0.1, 0.9], [1, -1, 0], [0, 1, -0.5]],
    dtype=torch.float64,
)  # fmt: skip
TARGET = torch.tensor([0, 1, 2, 0, 2, 1, 0, 1, 1, 0])


def fitted(logits=LOGITS, target=TARGET, **settings):
    method = MatrixScaling(**settings)
    method.fit(logits, target)
    return method


def sample(n=400, classes=3):
    logits = torch.randn(n, classes, dtype=torch.float64)
    mixed = logits @ (torch.eye(classes) + 0.5 * torch.randn(classes, classes)).double() + torch.arange(classes)
    return logits, torch.multinomial(mixed.softmax(1), 1).squeeze(1)


def objective(at, z, y, off_diagonal, intercept, penalty):
    """The formula in NumPy, from the entries of W, then those of b."""
    c = z.shape[1]
    w, b = at[: c * c].reshape(c, c), at[c * c :]
    scores = z @ w.T + b
    nll = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
    beside = sum(w[i, j] ** 2 for i in range(c) for j in range(c) if i != j)
    ridge = penalty / 2 * (((w - np.eye(c)) ** 2).sum() + (b**2).sum())
    return nll.mean() + off_diagonal * beside / (c * (c - 1)) + intercept * (b**2).mean() + ridge


def test_the_number_of_another_program():
    """0.670825 for both penalties: found by another optimizer, before this code was written."""
    w, b = best_matrix_and_bias(LOGITS, TARGET, off_diagonal=0.1, intercept=0.2, penalty=1e-12)
    at = torch.cat([w.flatten(), b]).numpy()
    assert objective(at, LOGITS.numpy(), TARGET.numpy(), 0.1, 0.2, 0) == pytest.approx(0.670825, abs=1e-6)


@pytest.mark.parametrize(("off_diagonal", "intercept", "penalty"), [(0, 0, 0.05), (0.1, 0.2, 1e-6), (3, 0, 1e-3)])
def test_equals_the_optimum_of_scipy(off_diagonal, intercept, penalty):
    settings = (off_diagonal, intercept, penalty)
    z, y = LOGITS.numpy(), TARGET.numpy()
    theirs = minimize(objective, np.r_[np.eye(3).ravel(), np.zeros(3)], (z, y, *settings), options={"gtol": 1e-9}).x
    w, b = best_matrix_and_bias(LOGITS, TARGET, off_diagonal=off_diagonal, intercept=intercept, penalty=penalty)
    ours = torch.cat([w.flatten(), b]).numpy()
    assert objective(ours, z, y, *settings) <= objective(theirs, z, y, *settings) + 1e-12
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_without_penalties_it_is_the_logistic_regression_of_scikit_learn():
    logits, target = sample()
    theirs = LogisticRegression(C=1e12, tol=1e-10, max_iter=10000).fit(logits.numpy(), target.numpy())
    p = fitted(logits, target, penalty=1e-12)(logits).numpy()
    np.testing.assert_allclose(p, theirs.predict_proba(logits.numpy()), atol=1e-5)


def test_equals_torch_uncertainty():
    """Its optimizer takes float32 and stops early."""
    logits, target = sample()
    scaler = MatrixScaler(3, max_iter=2000, lr=0.5)
    scaler.fit([(logits.float(), target)], progress=False)
    torch.testing.assert_close(
        fitted(logits, target)(logits), scaler(logits.float()).softmax(1).double(), atol=2e-3, rtol=0
    )


def test_with_large_penalties_only_the_diagonal_is_left():
    method = fitted(off_diagonal=1e6, intercept=1e6)
    assert method.bias.abs().max() < 1e-5
    assert (method.weight - method.weight.diagonal().diag()).abs().max() < 1e-5

    def nll(scales):
        return float(F.cross_entropy(torch.from_numpy(scales) * LOGITS, TARGET))

    best = minimize(nll, np.ones(3), tol=1e-12).x
    np.testing.assert_allclose(method.weight.diagonal().numpy(), best, atol=1e-2)


def test_a_soft_target_is_the_same_as_repeated_samples():
    soft = torch.tensor([[0.25, 0.75, 0.0]]).expand(len(LOGITS), 3)
    repeated = best_matrix_and_bias(LOGITS.repeat_interleave(4, 0), torch.tensor([0, 1, 1, 1]).repeat(len(LOGITS)))
    for ours, theirs in zip(best_matrix_and_bias(LOGITS, soft), repeated):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"off_diagonal": 1.0, "intercept": 1.0}])
@pytest.mark.parametrize(
    ("logits", "target"),
    [(torch.eye(3), torch.arange(3)), (1e4 * torch.eye(3), torch.tensor([1, 2, 2])), (torch.zeros(4, 3), TARGET[:4])],
    ids=["separated", "large and one class missing", "nothing said"],
)
def test_where_nothing_is_best_without_a_penalty_the_result_is_finite_and_no_worse(logits, target, settings):
    method = fitted(logits, target, **settings)
    assert method.weight.isfinite().all()
    assert method.bias.isfinite().all()
    p = method(logits.double())
    assert F.nll_loss(p.log(), target) <= F.cross_entropy(logits.double(), target) + 1e-9


@pytest.mark.parametrize("logits", [LOGITS, 5 * torch.eye(3)[TARGET]], ids=["usual", "separated"])
def test_it_stops_where_nothing_is_left_to_gain(logits, monkeypatch):
    module = "lightning_objectives.calibration.matrix_scaling._STEPS"
    monkeypatch.setattr(module, 50)
    early = fitted(logits)(logits)
    monkeypatch.setattr(module, 5000)
    assert torch.equal(fitted(logits)(logits), early)


def test_before_the_fit_it_is_softmax():
    assert torch.equal(MatrixScaling()(LOGITS), LOGITS.softmax(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": 0.0}, r"penalty=0\.0 must be positive and finite"),
        ({"penalty": math.nan}, "penalty=nan must be positive and finite"),
        ({"off_diagonal": -1.0}, r"off_diagonal=-1\.0 must be >= 0 and finite"),
        ({"intercept": math.inf}, "intercept=inf must be >= 0 and finite"),
    ],
)
def test_settings_outside_of_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MatrixScaling(**settings)


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(0, 3), "no samples"), (torch.tensor([[0.0, math.nan, 1.0]]), "1 of 1 samples have logits")],
)
def test_what_cannot_be_fitted_is_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        fitted(logits, torch.zeros(len(logits), dtype=torch.long))
