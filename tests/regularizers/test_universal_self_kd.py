import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import UniversalSelfKD

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.0, -0.5, 3.0], [0.2, 0.1, 1.0, 0.9]])
TARGET = torch.tensor([0, 1, 3])


def built(weight=None, channels=(3,), **settings):
    method = UniversalSelfKD(**settings)
    method.build(hidden=channels, classes=4)
    if weight is not None:
        method.weak_head.weight.data, method.weak_head.bias.data = weight, torch.zeros(4)
    return method


WEIGHT = torch.tensor([[0.5, 0.0, 1.0], [0.0, 2.0, 0.0], [1.5, -1.0, 0.0], [0.0, 0.0, 1.0]])
HIDDEN = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [2.0, 1.0, 0.0]])


def slow(logits, target, weak, alpha=1.0, beta=0.1, mu=0.005):
    """Row by row in plain Python, with the ranks counted."""

    def softmax(row):
        total = sum(math.exp(v) for v in row)
        return [math.exp(v) / total for v in row]

    p = [softmax(row) for row in logits]
    mean = sum(row[y] ** 2 for row, y in zip(p, target)) / len(p)
    terms = []
    for row, y, z, w in zip(p, target, logits, weak):
        q, classes = softmax(w), range(len(z))
        term = -alpha * (row[y] ** 2 + 1 - mean) * math.log(row[y])
        score = [q[k] / (1 - q[y]) + math.log(row[k]) / (1 - math.log(row[y])) for k in classes]
        ranks = [1 + sum(score[j] > score[k] for j in classes) for k in classes]
        others = [k for k in classes if k != y]
        total = sum(1 / ranks[k] for k in others)
        hats = dict(zip(others, softmax([z[k] for k in others])))
        term -= beta * sum(1 / ranks[k] / total * math.log(hats[k]) for k in others)
        term -= mu * sum((0.9 * (k == y) + 0.1 / len(z)) * math.log(q[k]) for k in classes)
        terms.append(term)
    return torch.tensor(terms)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0, "mu": 0.0}, {"alpha": 0.0, "beta": 0.0, "mu": 1.0}])
def test_equals_a_slow_loop(settings):
    method = built(WEIGHT, **settings)
    weak = (HIDDEN @ WEIGHT.T).tolist()
    expected = slow(LOGITS.tolist(), TARGET.tolist(), weak, **settings)
    torch.testing.assert_close(method(LOGITS, TARGET, (HIDDEN,)), expected, rtol=1e-5, atol=1e-5)


def test_by_hand():
    """Even logits: each p is 1/4, t is 1, and the others share log 3: 4/2 log 2 + 0.1 log 3."""
    method = built(WEIGHT, mu=0.0)
    term = method(torch.zeros(1, 4), torch.tensor([2]), (HIDDEN[:1],))
    torch.testing.assert_close(term, torch.tensor([2 * math.log(2) + 0.1 * math.log(3)]))


def test_the_weak_head_changes_the_ranks():
    logits = torch.tensor([[0.3, 0.2, 0.1, 0.0]])
    terms = []
    for weak in ([0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]):
        method = built(torch.tensor(weak)[:, None], (1,), alpha=0.0, mu=0.0, beta=1.0)
        terms.append(method(logits, torch.tensor([0]), (torch.ones(1, 1),)))
    log_p = logits[:, 1:].log_softmax(1)[0]
    # The target's rank, the second, is left out.
    for term, ranks in zip(terms, ([1, 3, 4], [3, 4, 1])):
        shares = 1 / torch.tensor(ranks, dtype=torch.float32)
        torch.testing.assert_close(term, -(shares / shares.sum() * log_p).sum()[None])


def test_maps_are_averaged_and_layers_joined():
    method = built(WEIGHT)
    maps = HIDDEN[:, :, None, None] + torch.tensor([[-1.0, 1.0], [2.0, -2.0]])
    torch.testing.assert_close(method(LOGITS, TARGET, (maps,)), method(LOGITS, TARGET, (HIDDEN,)))
    two = built(WEIGHT, (1, 2))
    torch.testing.assert_close(two(LOGITS, TARGET, (HIDDEN[:, :1], maps[:, 1:])), method(LOGITS, TARGET, (HIDDEN,)))


def test_soft_labels_are_constants():
    """The gradient of the logits is that of two cross entropies; the layers get one by the weak head's own loss."""
    logits, hidden = LOGITS.clone().requires_grad_(), HIDDEN.clone().requires_grad_()
    method = built(WEIGHT, beta=0.0, mu=0.0)
    method(logits, TARGET, (hidden,)).sum().backward()
    p = LOGITS.softmax(1)
    squares = p.gather(1, TARGET[:, None]) ** 2
    torch.testing.assert_close(logits.grad, (1 + squares - squares.mean()) * (p - F.one_hot(TARGET, 4)))
    assert hidden.grad is None or hidden.grad.abs().max() == 0
    built(WEIGHT)(LOGITS, TARGET, (hidden,)).sum().backward()
    assert hidden.grad.abs().max() > 0


def test_mixed_labels_have_two_targets():
    method = built(WEIGHT)
    sure = F.one_hot(TARGET, 4).float()
    torch.testing.assert_close(method(LOGITS, sure, (HIDDEN,)), method(LOGITS, TARGET, (HIDDEN,)))
    mixed = torch.tensor([[0.7, 0.0, 0.0, 0.3]])
    method = built(WEIGHT, beta=0.0, mu=0.0)
    log_p = LOGITS[:1].log_softmax(1)[0]
    # In a batch of one the mean is the row itself.
    torch.testing.assert_close(method(LOGITS[:1], mixed, (HIDDEN[:1],)), -(mixed[0] * log_p).sum()[None])
    method = built(WEIGHT, alpha=0.0, beta=1.0, mu=0.0)
    others = LOGITS[:1, 1:3].log_softmax(1)[0]
    score = (HIDDEN[:1] @ WEIGHT.T).softmax(1)[0] / (1 - (HIDDEN[:1] @ WEIGHT.T).softmax(1)[0, [0, 3]].sum())
    score = score + log_p / (1 - log_p[[0, 3]].sum())
    ranks = score.argsort(descending=True).argsort() + 1
    shares = (1 / ranks)[1:3] / (1 / ranks)[1:3].sum()
    torch.testing.assert_close(method(LOGITS[:1], mixed, (HIDDEN[:1],)), -(shares * others).sum()[None])


def test_two_classes_have_no_others():
    for target in (torch.tensor([1]), torch.tensor([[0.4, 0.6]])):
        method = UniversalSelfKD(alpha=0.0, beta=1.0, mu=0.0)
        method.build(hidden=(3,), classes=2)
        logits = LOGITS[:1, :2].clone().requires_grad_()
        term = method(logits, target, (HIDDEN[:1],))
        term.sum().backward()
        assert term.item() == 0
        assert logits.grad.abs().max() == 0


def test_ignored_rows_do_not_enter_the_mean():
    method = built(WEIGHT)
    some = method(LOGITS, torch.tensor([0, -100, 3]), (HIDDEN,))[::2]
    torch.testing.assert_close(some, method(LOGITS[::2], TARGET[::2], (HIDDEN[::2],)))


def test_large_logits_stay_finite():
    logits = (1e4 * LOGITS.sign()).requires_grad_()
    terms = built(WEIGHT)(logits, torch.tensor([3, 2, 1]), (1e4 * HIDDEN,))
    terms.sum().backward()
    assert terms.isfinite().all()
    assert logits.grad.isfinite().all()


class Binary(Net):
    def __init__(self):
        super().__init__(classes=1)

    def training_step(self, batch, batch_idx):
        hit = (batch[1] == 0).float()[:, None]
        return F.binary_cross_entropy_with_logits(self(batch[0]), hit)


def test_one_logit_is_two_classes():
    method = UniversalSelfKD()
    fit(AddRegularizer(method, layers="backbone.0"), net=Binary)
    assert method.weak_head.weight.shape == (2, 6)


def test_logits_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"logits of the shape \(3, 4\) must be those of the weak head, \(2, 4\)"):
        built(WEIGHT)(LOGITS, TARGET, (HIDDEN[:2],))


@pytest.mark.parametrize("name", ["alpha", "beta", "mu"])
def test_a_negative_setting_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name}=-1\.0 must be >= 0"):
        UniversalSelfKD(**{name: -1.0})
