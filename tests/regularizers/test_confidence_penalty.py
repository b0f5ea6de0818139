import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.regularizers import ConfidencePenalty, confidence_penalty


def by_loop(row: list[float]) -> float:
    """The negative entropy of the softmax, number by number."""
    powers = [math.exp(logit) for logit in row]
    return sum(power / sum(powers) * math.log(power / sum(powers)) for power in powers)


def test_by_hand():
    """p = (0.659001, 0.242433, 0.098566): 0.659001 · -0.417030 + 0.242433 · -1.417030 + 0.098566 · -2.317030."""
    terms = confidence_penalty(torch.tensor([[2.0, 1.0, 0.1]]))
    torch.testing.assert_close(terms, torch.tensor([-0.846738]), rtol=0, atol=1e-6)


def test_the_threshold_by_hand():
    """1 - 0.846738; the uniform row has the entropy log 3 = 1.098612, which is enough."""
    terms = confidence_penalty(torch.tensor([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]]), threshold=1.0)
    torch.testing.assert_close(terms, torch.tensor([0.153262, 0.0]), rtol=0, atol=1e-6)


def test_rows_against_a_loop():
    logits = torch.randn(6, 5, dtype=torch.float64)
    expected = torch.tensor([by_loop(row) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(confidence_penalty(logits), expected)


def test_it_is_the_divergence_from_the_uniform_distribution_up_to_a_constant():
    """The paper's other reading: KL(p || u) = log C - H(p)."""
    logits = torch.randn(6, 5)
    uniform = torch.full((6, 5), 1 / 5)
    divergence = F.kl_div(uniform.log(), logits.log_softmax(1), log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(confidence_penalty(logits) + math.log(5), divergence, rtol=1e-5, atol=1e-6)


def test_the_uniform_prediction_is_the_minimum():
    logits = torch.zeros(2, 4, requires_grad=True)
    terms = confidence_penalty(logits)
    torch.testing.assert_close(terms, torch.full((2,), -math.log(4)))
    terms.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 4))


def test_a_threshold_of_zero_adds_nothing():
    logits = torch.randn(5, 3, requires_grad=True)
    terms = confidence_penalty(logits, threshold=0.0)
    terms.sum().backward()
    assert not terms.any()
    assert not logits.grad.any()


def test_a_prediction_that_is_certain():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    terms = ConfidencePenalty()(logits)
    terms.sum().backward()
    assert terms.item() == 0.0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("threshold", [-1.0, float("inf"), float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match=rf"threshold={threshold} must be finite and >= 0"):
        ConfidencePenalty(threshold=threshold)
    with pytest.raises(ValueError, match=rf"threshold={threshold} must be finite and >= 0"):
        confidence_penalty(torch.zeros(1, 2), threshold=threshold)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="one class"):
        confidence_penalty(torch.zeros(4, 1))
