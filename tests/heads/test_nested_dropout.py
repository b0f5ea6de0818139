import math

import pytest
import torch
from torch import nn

from lightning_objectives.heads import NestedDropout, nested_dropout


def counts(size, scale, draws, **head):
    """How often each k is drawn: the head returns its input."""
    torch.manual_seed(0)
    found = torch.zeros(size + 1)
    for _ in range(draws):
        (kept,) = nested_dropout(torch.ones(2, size), nn.Identity(), scale=scale)
        k = int(kept[0].sum())
        assert torch.equal(kept, (torch.arange(size) < k).float().expand(2, size)), "a prefix, the same in all rows"
        found[k] += 1
    return found


def test_k_has_its_distribution():
    """P(k) = e^(-k²/s²) over the sum: at s = 3 and D = 5 0.351, 0.251, 0.144, 0.066, 0.024 before the division."""
    weights = [math.exp(-((k / 3.0) ** 2)) for k in range(1, 6)]
    expected = torch.tensor([0.0, *(w / sum(weights) for w in weights)])
    draws = 4000
    found = counts(5, 3.0, draws) / draws
    # Four standard deviations of a share.
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()


def test_a_small_scale_keeps_one_and_a_large_one_any_number():
    assert counts(4, 1e-200, 20)[1] == 20
    assert (counts(4, 1e9, 400)[1:] > 60).all()


def test_kept_features_are_not_scaled():
    head = nn.Linear(6, 3, dtype=torch.float64)
    features = torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(3)
    (logits,) = nested_dropout(features, head, scale=3.0)
    prefixes = [features[:, :k] @ head.weight[:, :k].T + head.bias for k in range(1, 7)]
    assert sum(torch.allclose(logits, prefix) for prefix in prefixes) == 1


def test_dropped_features_get_no_gradient():
    head = nn.Linear(6, 3)
    features = torch.randn(4, 6, requires_grad=True)
    nested_dropout(features, head, scale=0.1).sum().backward()
    assert features.grad[:, 0].abs().min() > 0
    assert features.grad[:, 1:].abs().max() == 0
    assert head.weight.grad[:, 1:].abs().max() == 0


def test_sequences_and_convolutions():
    (kept,) = nested_dropout(torch.ones(2, 7, 5), nn.Identity(), scale=0.1)
    assert torch.equal(kept, torch.tensor([1.0, 0, 0, 0, 0]).expand(2, 7, 5))
    head = nn.Conv2d(5, 3, 1)
    maps = torch.randn(2, 5, 4, 4)
    (logits,) = nested_dropout(maps, head, scale=0.1)
    torch.testing.assert_close(logits, nn.functional.conv2d(maps[:, :1], head.weight[:, :1], head.bias))


def test_evaluation_draws_nothing():
    head, features, method = nn.Linear(6, 3), torch.randn(4, 6), NestedDropout(scale=1.0).eval()
    state = torch.get_rng_state()
    assert torch.equal(method(features, head)[0], head(features))
    assert torch.equal(torch.get_rng_state(), state)


def test_refusals():
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"scale={scale} must be > 0"):
            NestedDropout(scale=scale)
    with pytest.raises(ValueError, match=r"features of the shape \(3,\)"):
        nested_dropout(torch.ones(3), nn.Identity())
