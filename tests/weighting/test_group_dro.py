import copy
import math

import pytest
import torch
import torch.nn.functional as F
from bare_step import Module, loss_and_gradient

from lightning_objectives.callbacks import ReweightSamples
from lightning_objectives.weighting import GroupDRO

LOSSES, GROUP = torch.tensor([0.2, 0.4, 1.0, 3.0]), torch.tensor([0, 0, 1, 2])


def shares(method):
    return method.log_shares.exp()


def method_of(counts=(100, 25, 4), **settings):
    return GroupDRO(group_counts=counts, **settings)


def test_two_batches_by_hand():
    """e^(0.5 · 0.3), e^(0.5 · 1), e^(0.5 · 3) = 1.161834, 1.648721, 4.481689, of 7.292244; then group 1 alone."""
    method = method_of(step_size=0.5)
    weights = method(LOSSES, GROUP)
    torch.testing.assert_close(shares(method), torch.tensor([0.159325, 0.226092, 0.614583]), rtol=0, atol=1e-6)
    torch.testing.assert_close((weights * LOSSES).mean(), torch.tensor(2.117639))
    weights = method(torch.tensor([0.5, 2.0]), torch.tensor([1, 1]))
    torch.testing.assert_close(shares(method), torch.tensor([0.133181, 0.353084, 0.513735]), rtol=0, atol=1e-6)
    assert weights.tolist() == [1, 1]


def test_the_adjustment_favours_small_groups_and_is_not_in_the_loss():
    """2 / (10, 5, 2) is added to the losses of the groups for their shares alone."""
    method = method_of(step_size=0.5, adjustment=2.0)
    weights = method(LOSSES, GROUP)
    risks = torch.tensor([0.3 + 0.2, 1 + 0.4, 3 + 1.0])
    torch.testing.assert_close(shares(method), (0.5 * risks).softmax(0))
    torch.testing.assert_close((weights * LOSSES).mean(), ((0.5 * risks).softmax(0) * torch.tensor([0.3, 1, 3])).sum())


def test_no_step_keeps_the_groups_equal():
    method = method_of(step_size=0.0)
    torch.testing.assert_close(method(LOSSES, GROUP), torch.tensor([2 / 3, 2 / 3, 4 / 3, 4 / 3]))


def test_an_absent_group_leaves_the_others_in_their_proportion():
    method = method_of(step_size=0.0)
    torch.testing.assert_close(method(LOSSES[:3], GROUP[:3]), torch.tensor([0.75, 0.75, 1.5]))


def test_great_losses_do_not_overflow():
    """e^(100 · 1000) is infinite in float64 too."""
    method = method_of(step_size=100.0)
    weights = method(1000 * LOSSES, GROUP)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0, 0, 4]))
    assert method.log_shares.isfinite().all()


def test_a_non_finite_loss_counts_in_no_group():
    method, clean = method_of(step_size=0.5), method_of(step_size=0.5)
    weights = method(torch.tensor([0.2, math.nan, 0.4, 1.0, math.inf, 3.0]), torch.tensor([0, 1, 0, 1, 2, 2]))
    torch.testing.assert_close(weights[[0, 2, 3, 5]], clean(LOSSES, GROUP))
    assert weights[[1, 4]].tolist() == [0, 0]
    torch.testing.assert_close(shares(method), shares(clean))


def test_a_batch_of_nothing_finite_changes_no_share():
    method = method_of(step_size=0.5)
    assert method(torch.full((2,), math.nan), torch.tensor([0, 1])).tolist() == [1, 1]
    torch.testing.assert_close(shares(method), torch.full((3,), 1 / 3))


def test_the_shares_are_saved():
    method, other = method_of(step_size=0.5), method_of(step_size=0.5)
    method(LOSSES, GROUP)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert list(method.state_dict()) == ["log_shares"]
    torch.testing.assert_close(other(LOSSES, GROUP), method(LOSSES, GROUP))


def test_in_a_step_the_worst_group_alone_counts_after_a_great_step(monkeypatch):
    logits, target, group = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 1, 1])
    monkeypatch.setattr(Module, "objective_group", lambda module, batch: group, raising=False)
    losses = F.cross_entropy(logits, target, reduction="none")
    worst = max(losses[:2].mean(), losses[2:].mean())
    method = GroupDRO(group_counts=(2, 2), step_size=1e4)
    value, _ = loss_and_gradient(lambda m, z, y: F.cross_entropy(z, y), (logits, target), ReweightSamples(method))
    torch.testing.assert_close(value, worst)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": -1.0}, r"step_size=-1\.0 must be >= 0"),
        ({"adjustment": -1.0}, r"adjustment=-1\.0 must be >= 0"),
        ({"counts": (5,)}, r"group_counts=\(5,\) must have a number > 0 for each of two groups"),
        ({"counts": (5, 0)}, r"group_counts=\(5, 0\) must have a number > 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        method_of(**settings)
