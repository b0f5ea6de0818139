import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_objectives.losses import MannWhitneyLoss, mann_whitney_loss

LABELS = torch.tensor([1.0, 0, 0, 1, 0, 0])


def test_by_hand():
    """Pairs 2 - 1 and 2 - 0.5: log(1 + e^-1) = 0.313262, log(1 + e^-1.5) = 0.201413; the positive has both."""
    losses = mann_whitney_loss(torch.tensor([[2.0], [1.0], [0.5]]), torch.tensor([[1.0], [0.0], [0.0]]))
    torch.testing.assert_close(losses, torch.tensor([0.514675, 0.313262, 0.201413]) * 3 / 4, rtol=0, atol=1e-6)


def test_equals_a_plain_loop_over_pairs_and_bounds_the_area():
    scores = torch.randn(6)
    pairs = [
        math.log1p(math.exp(-(a - b) / 0.5))
        for a, t in zip(scores.tolist(), LABELS)
        for b, u in zip(scores.tolist(), LABELS)
        if t and not u
    ]
    loss = mann_whitney_loss(scores[:, None], LABELS[:, None], temperature=0.5).mean()
    torch.testing.assert_close(loss, torch.tensor(sum(pairs) / 8))
    assert loss >= math.log(2) * (1 - roc_auc_score(LABELS, scores))


def test_a_common_shift_changes_nothing_and_the_gradients_cancel():
    scores = torch.randn(6, 1, requires_grad=True)
    losses = mann_whitney_loss(scores, LABELS[:, None])
    torch.testing.assert_close(losses, mann_whitney_loss(scores + 5, LABELS[:, None]), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert gradient.sum().abs() < 1e-6
    assert (gradient[LABELS > 0] < 0).all()


def test_columns_are_averaged_if_they_have_both_kinds():
    """The second column has no negative, the third no positive."""
    scores = torch.randn(6, 4)
    labels = torch.stack([LABELS, torch.ones(6), torch.zeros(6), 1 - LABELS], 1)
    losses = mann_whitney_loss(scores, labels)
    alone = [mann_whitney_loss(scores[:, k, None], labels[:, k, None]) for k in (0, 3)]
    torch.testing.assert_close(losses, (alone[0] + alone[1]) / 2)


def test_classes_are_one_against_the_rest():
    scores, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 1])
    alone = [mann_whitney_loss(scores[:, k, None], (target == k).float()[:, None]) for k in range(3)]
    torch.testing.assert_close(mann_whitney_loss(scores, target), torch.stack(alone).mean(0))


def test_a_share_counts_as_so_many_samples():
    """A sample of 0.25 is a quarter of a positive and three quarters of a negative one."""
    scores = torch.tensor([[2.0], [0.0], [1.0]], dtype=torch.float64)
    loss = mann_whitney_loss(scores, torch.tensor([[1.0], [0.0], [0.25]], dtype=torch.float64)).mean()
    pairs = {(2, 0): 1, (2, 1): 0.75, (1, 0): 0.25, (1, 1): 0.25 * 0.75}
    expected = sum(w * math.log1p(math.exp(b - a)) for (a, b), w in pairs.items()) / (1.25 * 1.75)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("labels", [torch.ones(3, 1), torch.zeros(3, 1)])
def test_a_batch_of_one_kind_teaches_nothing(labels):
    scores = torch.randn(3, 1, requires_grad=True)
    losses = mann_whitney_loss(scores, labels)
    assert losses.tolist() == [0, 0, 0]
    assert torch.autograd.grad(losses.sum(), scores)[0].tolist() == [[0], [0], [0]]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be > 0"):
        MannWhitneyLoss(temperature=0.0)
