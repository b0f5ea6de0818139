import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from lightning_objectives.calibration import VectorScaling, best_scale_and_bias

LOGITS = torch.tensor(
    [[2, 0, -1], [1.5, 1, 0], [0, 2, 0.5], [0.5, 1.2, -0.3], [-1, 0, 1.5], [0, 0.5, 1], [1, 0.2, 0.8], [0.3, 0.1, 0.9]]
)
TARGET = torch.tensor([0, 1, 2, 0, 2, 1, 0, 1])


def fitted(logits=LOGITS, target=TARGET, **settings):
    method = VectorScaling(**settings)
    method.fit(logits, target)
    return method


def test_by_hand():
    """Two kinds of rows and a free bias: the rates are those of the rows, 2 of 3 and 0 of 1 as far as the penalty."""
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    p = fitted(logits, torch.tensor([0, 0, 1, 1, 0]), penalty=1e-12)(logits.double())
    torch.testing.assert_close(p[:, 0], torch.tensor([2 / 3, 2 / 3, 2 / 3, 0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("penalty", [1e-12, 1e-6, 0.1])
def test_equals_the_optimum_of_scipy(penalty):
    z, y = LOGITS.double().numpy(), TARGET.numpy()

    def objective(at):
        scores = at[:3] * z + at[3:]
        nll = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
        return nll.mean() + penalty / 2 * (((at[:3] - 1) ** 2).sum() + (at[3:] ** 2).sum())

    theirs = minimize(objective, np.r_[np.ones(3), np.zeros(3)], tol=1e-14, options={"gtol": 1e-9}).x
    ours = torch.cat(best_scale_and_bias(LOGITS, TARGET, penalty=penalty)).numpy()
    assert objective(ours) <= objective(theirs) + 1e-13
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=1e-3)
    np.testing.assert_allclose(ours[3:] - ours[3:].mean(), theirs[3:] - theirs[3:].mean(), atol=1e-3)


def test_it_finds_the_scales_and_biases_that_were_applied():
    logits = 2 * torch.randn(40000, 3, dtype=torch.float64)
    scale, bias = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, -1.0, 0.0])
    target = torch.multinomial((scale * logits + bias).softmax(1), 1).squeeze(1)
    method = fitted(logits, target)
    torch.testing.assert_close(method.scale.float(), scale, atol=0.05, rtol=0.05)
    torch.testing.assert_close(method.bias.float(), bias, atol=0.05, rtol=0.05)
    assert torch.equal(fitted(logits, target).scale, method.scale)


def test_a_soft_target_is_the_same_as_repeated_samples():
    soft = torch.tensor([[0.25, 0.75, 0.0]]).expand(len(LOGITS), 3)
    repeated = best_scale_and_bias(LOGITS.repeat_interleave(4, 0), torch.tensor([0, 1, 1, 1]).repeat(len(LOGITS)))
    for ours, theirs in zip(best_scale_and_bias(LOGITS, soft), repeated):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("logits", "target"),
    [(torch.eye(3), torch.arange(3)), (1e4 * torch.eye(3), torch.tensor([1, 2, 2])), (torch.zeros(4, 3), TARGET[:4])],
    ids=["separated", "large and one class missing", "nothing said"],
)
def test_where_nothing_is_best_without_a_penalty_the_result_is_finite(logits, target):
    method = fitted(logits, target)
    assert method.scale.isfinite().all()
    assert method.bias.sum().abs() < 1e-4
    p = method(logits.double())
    assert F.nll_loss(p.log(), target) <= F.cross_entropy(logits.double(), target) + 1e-9
    assert (p > 0).all() or logits.max() > 1e3


@pytest.mark.parametrize("penalty", [1e-12, 1e-6])
@pytest.mark.parametrize("logits", [LOGITS, 5 * torch.eye(3)[TARGET]], ids=["usual", "separated"])
def test_it_stops_where_nothing_is_left_to_gain(logits, penalty, monkeypatch):
    solve, steps = torch.linalg.solve, []
    monkeypatch.setattr(torch.linalg, "solve", lambda *system: steps.append(1) or solve(*system))
    fitted(logits, TARGET, penalty=penalty)
    assert 3 < len(steps) < 50


def test_before_the_fit_it_is_softmax():
    assert torch.equal(VectorScaling()(LOGITS), LOGITS.softmax(1))


@pytest.mark.parametrize("penalty", [0.0, -1.0, math.inf, math.nan])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match=rf"penalty={penalty} must be positive and finite"):
        VectorScaling(penalty=penalty)


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(0, 3), "no samples"), (torch.tensor([[0.0, math.nan, 1.0]]), "1 of 1 samples have logits")],
)
def test_what_cannot_be_fitted_is_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        fitted(logits, torch.zeros(len(logits), dtype=torch.long))


# -- what all methods with fitted buffers share, tried on this one -----------------------------------------------------


def test_a_state_of_any_number_of_classes_is_loaded():
    """Into a new one, into one of other classes, and the state of an unfitted one again."""
    saved, other = fitted().state_dict(), fitted(torch.randn(9, 5), torch.arange(9) % 5)
    for method in (VectorScaling(), other):
        method.load_state_dict(saved)
        assert torch.equal(method(LOGITS), fitted()(LOGITS))
    other.load_state_dict(VectorScaling().state_dict())
    assert torch.equal(other(LOGITS), LOGITS.softmax(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.ones(2)}, r"bias of the shape \(3,\), .* must be \(C,\) float with C = 2"),
        ({"scale": torch.ones(3, 1)}, r"scale of the shape \(3, 1\), .* must be \(C,\) float"),
        ({"bias": torch.ones(3, dtype=torch.long)}, r"bias of the shape \(3,\), torch\.int64, must be \(C,\) float"),
        ({"bias": torch.ones(0)}, "bias"),
        ({"bias": None}, "has no 'bias'"),
        ({"bias": 1.0}, "has no 'bias'"),
    ],
)
def test_a_state_of_a_wrong_shape_is_refused_and_changes_nothing(change, message):
    method = fitted()
    state = {name: change.get(name, torch.zeros_like(value)) for name, value in method.state_dict().items()}
    with pytest.raises(RuntimeError, match=message):
        method.load_state_dict({name: value for name, value in state.items() if value is not None})
    assert torch.equal(method(LOGITS), fitted()(LOGITS))


def test_what_is_loaded_in_inference_mode_is_no_hindrance():
    method = VectorScaling()
    with torch.inference_mode():
        method.load_state_dict(fitted().state_dict())
    method(LOGITS.double().requires_grad_()).square().sum().backward()


def test_logits_of_other_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"\(6, 5\) have 5 classes, but VectorScaling\(penalty=1e-06\) was fitted on 3"
    ):
        fitted()(torch.zeros(6, 5))
    for logits, words in ((torch.zeros(4, 1), "two or more"), (torch.zeros(2, 3, 4, 4), r"movedim\(1, -1\)")):
        with pytest.raises(ValueError, match=words):
            VectorScaling()(logits)
