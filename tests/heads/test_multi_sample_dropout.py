"""Multi-sample dropout against dropout called M times, and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives.heads import MultiSampleDropout, multi_sample_dropout


def test_by_hand(monkeypatch):
    # two masks of three features, p = 1/2: kept features are doubled; head(z) = z @ [1, 10, 100]
    masks = torch.tensor([[[1.0, 0, 1]], [[0, 1, 0]]])
    monkeypatch.setattr(F, "dropout", lambda rows, p: rows * masks / (1 - p))
    features = torch.tensor([[1.0, 2.0, 3.0]])
    stacks = multi_sample_dropout(features, lambda z: z @ torch.tensor([[1.0], [10], [100]]), num_samples=2, p=0.5)
    assert stacks.tolist() == [[[2 * 1.0 + 2 * 300]], [[2 * 20.0]]]


def test_one_sample_is_dropout_bit_for_bit():
    head, features = nn.Linear(6, 3), torch.randn(5, 6)
    torch.manual_seed(1)
    one = multi_sample_dropout(features, head, num_samples=1, p=0.3)
    torch.manual_seed(1)
    assert torch.equal(one[0], head(F.dropout(features, 0.3)))


def test_stack_m_of_row_n_is_row_n_under_its_own_mask():
    features = torch.rand(4, 2, 50) + 1
    stacks = multi_sample_dropout(features, nn.Identity(), num_samples=3, p=0.5)
    kept = stacks != 0
    assert torch.equal(stacks, torch.where(kept, 2 * features, 0.0))  # inverted dropout of the same features
    masks = kept.flatten(0, 2)
    assert len(masks.unique(dim=0)) == len(masks)  # all 24 differ
    assert 0.4 < kept.float().mean() < 0.6


def test_the_loss_is_the_mean_of_losses_which_is_not_that_of_the_mean_logits():
    torch.manual_seed(0)
    head, features, target = nn.Linear(6, 3), 3 * torch.randn(8, 6), torch.arange(8) % 3
    stacks = multi_sample_dropout(features, head, num_samples=4, p=0.5)
    losses = torch.stack([F.cross_entropy(stack, target) for stack in stacks])
    assert F.cross_entropy(stacks.mean(0), target) < losses.mean()  # convex


def test_the_mean_over_many_masks_is_the_plain_head():
    torch.manual_seed(0)
    head, features = nn.Linear(6, 3), torch.randn(2, 6)
    stacks = MultiSampleDropout(num_samples=20_000)(features, head)
    torch.testing.assert_close(stacks.mean(0), head(features), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("settings", "message"), [({"num_samples": 0}, "num_samples=0"), ({"p": 1.0}, r"p=1.0 must be in \[0, 1\)")]
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiSampleDropout(**settings)
