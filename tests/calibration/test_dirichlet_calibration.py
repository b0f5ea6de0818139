import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch_uncertainty.post_processing import DirichletScaler

from lightning_objectives.calibration import DirichletCalibration, MatrixScaling

LOGITS = torch.tensor(
    [[2, 0, -1], [1.5, 1, 0], [0, 2, 0.5], [0.5, 1.2, -0.3], [-1, 0, 1.5],
     [0, 0.5, 1], [1, 0.2, 0.8], [0.3, 0.1, 0.9], [1, -1, 0], [0, 1, -0.5]],
    dtype=torch.float64,
)  # fmt: skip
TARGET = torch.tensor([0, 1, 2, 0, 2, 1, 0, 1, 1, 0])


def fitted(logits=LOGITS, target=TARGET, **settings):
    method = DirichletCalibration(**settings)
    method.fit(logits, target)
    return method


def sample(n=400):
    p = torch.distributions.Dirichlet(torch.tensor([2.0, 1.0, 1.5], dtype=torch.float64)).sample((n,))
    mixed = p.log() @ torch.tensor([[1.5, 0.2, 0.0], [0.0, 0.7, 0.3], [-0.3, 0.0, 1.0]], dtype=torch.float64)
    return p.log(), torch.multinomial(mixed.softmax(1), 1).squeeze(1)


def test_the_number_of_another_program():
    """The objective is 0.623352, and the first row as below: found by another optimizer, before this was written."""
    method = fitted(off_diagonal=0.1, intercept=0.2, penalty=1e-12)
    p, w = method(LOGITS), method.weight
    beside = w.square().sum() - w.diagonal().square().sum()
    value = F.nll_loss(p.log(), TARGET) + 0.1 * beside / 6 + 0.2 * method.bias.square().mean()
    assert value.item() == pytest.approx(0.623352, abs=1e-6)
    np.testing.assert_allclose(p[0].numpy(), [0.781124, 0.218862, 0.000014], atol=2e-6)


def test_without_penalties_it_is_the_logistic_regression_of_scikit_learn():
    logits, target = sample()
    theirs = LogisticRegression(C=1e12, tol=1e-10, max_iter=10000).fit(logits.numpy(), target.numpy())
    p = fitted(logits, target, penalty=1e-12)(logits).numpy()
    np.testing.assert_allclose(p, theirs.predict_proba(logits.numpy()), atol=1e-5)


def test_equals_torch_uncertainty():
    """Its penalties are means, as ours, although its docstring says sums; its optimizer takes float32."""
    logits, target = sample()
    scaler = DirichletScaler(3, max_iter=2000, lr=0.5, lambda_reg=0.3, mu_reg=0.5)
    scaler.fit([(logits.float(), target)], progress=False)
    ours = fitted(logits, target, off_diagonal=0.3, intercept=0.5)
    torch.testing.assert_close(ours(logits), scaler(logits.float()).softmax(1).double(), atol=2e-3, rtol=0)


def test_what_is_added_to_all_logits_of_a_row_changes_nothing():
    """For matrix scaling it does."""
    settings = {"off_diagonal": 0.1, "intercept": 0.2}
    shifted = LOGITS + torch.randn(len(LOGITS), 1, dtype=torch.float64)
    torch.testing.assert_close(fitted(shifted, **settings)(shifted), fitted(**settings)(LOGITS))
    matrix = MatrixScaling(**settings)
    matrix.fit(shifted, TARGET)
    assert (matrix(shifted) - fitted(**settings)(LOGITS)).abs().max() > 1e-3


def test_a_multiple_of_the_identity_is_a_temperature():
    method = fitted()
    method.weight, method.bias = torch.eye(3).double() / 2.5, torch.zeros(3).double()
    torch.testing.assert_close(method(LOGITS), (LOGITS / 2.5).softmax(1))


def test_a_probability_that_rounds_to_0_has_a_finite_logarithm():
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0], [0.0, 0.0, 200.0], [200.0, 0.0, 0.0]])
    method = fitted(logits, torch.tensor([0, 1, 2, 1]))
    assert method.weight.isfinite().all()
    p = method(logits)
    assert F.nll_loss(p.double().log(), torch.tensor([0, 1, 2, 1])) < 1
    np.testing.assert_allclose(p[0, :2].numpy(), [0.5, 0.5], atol=1e-3)


def test_before_the_fit_it_is_softmax():
    assert torch.equal(DirichletCalibration()(LOGITS), LOGITS.softmax(1))


def test_a_negative_penalty_is_refused():
    with pytest.raises(ValueError, match=r"off_diagonal=-1\.0 must be >= 0"):
        DirichletCalibration(off_diagonal=-1.0)
