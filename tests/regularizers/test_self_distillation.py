import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.regularizers import SelfDistillation, past_cross_entropy


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(logit) for logit in row]
    return [power / sum(powers) for power in powers]


def test_by_hand():
    """Past (0.8, 0.2), now (0.5, 0.5) and (0.25, 0.75): log 2, and 0.8 · 1.386294 + 0.2 · 0.287682 = 1.166572."""
    logits = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.25, 0.75]]).log()
    past = torch.tensor([[0.8, 0.2]] * 3).log()
    terms = past_cross_entropy(logits, past, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(terms, torch.tensor([0.693147, 1.166572, 0.0]), rtol=0, atol=1e-6)


def test_three_epochs_against_a_loop():
    """Two batches an epoch, in an order that changes; each term needs the last logits of its own sample."""
    method, epochs = SelfDistillation(), torch.randn(3, 4, 3)
    memory = {"past_logits": torch.zeros(4, 3), "seen": torch.zeros(4)}
    last: dict[int, list[float]] = {}
    for logits, order in zip(epochs, ([0, 1, 2], [3, 1, 0], [2, 3, 1])):
        rows = {name: table[order] for name, table in memory.items()}
        expected = [
            -sum(p * math.log(q) for p, q in zip(softmax(last[i]), softmax(logits[i].tolist()))) if i in last else 0.0
            for i in order
        ]
        torch.testing.assert_close(method(logits[order], rows), torch.tensor(expected), rtol=1e-5, atol=1e-6)
        for name, values in method.learn(logits[order], rows).items():
            memory[name][order] = values
        last |= {i: logits[i].tolist() for i in order}


def test_a_sample_that_has_not_come_adds_nothing():
    logits = torch.randn(3, 4, requires_grad=True)
    terms = SelfDistillation()(logits, {"past_logits": torch.zeros(3, 4), "seen": torch.zeros(3)})
    terms.sum().backward()
    assert not terms.any()
    assert not logits.grad.any()


def test_the_prediction_of_before_is_the_minimum():
    past = torch.randn(3, 4)
    logits = past.clone().requires_grad_()
    past_cross_entropy(logits, past, torch.ones(3)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, 4), rtol=0, atol=1e-6)


def test_no_gradient_reaches_the_past():
    logits, past = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    past_cross_entropy(logits, past, torch.ones(3)).sum().backward()
    assert past.grad is None
    assert not SelfDistillation().learn(logits, {"seen": torch.zeros(3)})["past_logits"].requires_grad


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_the_papers_mixture_is_a_strength_and_a_factor(alpha):
    """(1 - alpha) y + alpha p as targets, against (1 - alpha) (loss + alpha / (1 - alpha) · term)."""
    logits, past, target = torch.randn(5, 3), torch.randn(5, 3), torch.arange(5) % 3
    mixture = (1 - alpha) * F.one_hot(target, 3) + alpha * past.softmax(1)
    expected = F.cross_entropy(logits, mixture, reduction="none")
    own = F.cross_entropy(logits, target, reduction="none")
    term = past_cross_entropy(logits, past, torch.ones(5))
    torch.testing.assert_close((1 - alpha) * (own + alpha / (1 - alpha) * term), expected)


def test_past_logits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"past_logits of the shape \(2, 4\).* with N = 2, C = 3"):
        past_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2))
    with pytest.raises(ValueError, match=r"seen of the shape \(2, 1\)"):
        past_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 1))


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="one class"):
        past_cross_entropy(torch.zeros(4, 1), torch.zeros(4, 1), torch.ones(4))
