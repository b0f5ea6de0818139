"""Multi-sample dropout against dropout called M times, and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives.heads import MultiSampleDropout, multi_sample_dropout

HALF = 2**30
"""Half of the 31 bits that several samples draw for a feature."""


def test_by_hand(monkeypatch):
    # two masks of three features, p = 1/2: kept features are doubled; head(z) = z @ [1, 10, 100]
    draws = torch.tensor([[[HALF, HALF - 1, 2**31 - 1]], [[0, HALF, HALF - 1]]])
    monkeypatch.setattr(torch.Tensor, "random_", lambda self: self.copy_(draws))
    features = torch.tensor([[1.0, 2.0, 3.0]])
    stacks = multi_sample_dropout(features, lambda z: z @ torch.tensor([[1.0], [10], [100]]), num_samples=2, p=0.5)
    assert stacks.tolist() == [[[2 * 1.0 + 2 * 300]], [[2 * 20.0]]]


def test_masks_drop_p_of_the_features_and_know_nothing_of_each_other():
    """Within five standard deviations, of a million and of half a million draws."""
    torch.manual_seed(0)
    dropped = multi_sample_dropout(torch.ones(500, 1000), nn.Identity(), num_samples=2, p=0.3) == 0
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 1e6) ** 0.5)
    for both in (dropped[0] & dropped[1], dropped[:, :-1] & dropped[:, 1:], dropped[..., :-1] & dropped[..., 1:]):
        assert both.double().mean().item() == pytest.approx(0.09, abs=5 * (0.09 * 0.91 / 5e5) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_are_those_of_the_kept_features_in_their_type(dtype):
    features = torch.ones(3, 4, dtype=dtype, requires_grad=True)
    stacks = multi_sample_dropout(features, nn.Identity(), num_samples=5, p=0.5)
    stacks.sum().backward()
    assert stacks.dtype == dtype
    assert torch.equal(features.grad, stacks.detach().sum(0))


def test_off_the_cpu_several_samples_are_torchs_own_dropout(monkeypatch):
    called = []
    dropout = F.dropout
    monkeypatch.setattr(F, "dropout", lambda rows, p: called.append(rows.shape) or dropout(rows, p))
    for device in ("meta", "cpu"):
        multi_sample_dropout(torch.ones(4, 3, device=device), nn.Identity(), num_samples=2)
    assert called == [(2, 4, 3)]


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
