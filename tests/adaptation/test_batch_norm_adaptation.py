"""The mixture by hand, its two limits, and what is refused."""

import pytest
import torch
from torch import nn

from lightning_objectives.adaptation import BatchNormAdaptation, mixed_statistics


def test_by_hand():
    """Of 1, 2, 3, 6 the mean is 3 and the variance 14/3; with N = 4 of 0 and 1 half of each: 1.5 and 17/6."""
    x = torch.tensor([1.0, 2.0, 3.0, 6.0])[:, None]
    mean, var = mixed_statistics(x, torch.zeros(1), torch.ones(1), prior_strength=4.0)
    assert (mean.item(), var.item()) == pytest.approx((1.5, 17 / 6))


def test_samples_count_and_not_pixels():
    """Two images of two channels and three pixels: N = 6 weighs 6 of 8."""
    x = torch.arange(12.0).reshape(2, 2, 3)
    mean, var = mixed_statistics(x, torch.ones(2), torch.full((2,), 2.0), prior_strength=6.0)
    for channel in range(2):
        values = x[:, channel].flatten().tolist()
        center = sum(values) / 6
        spread = sum((value - center) ** 2 for value in values) / 5
        assert mean[channel].item() == pytest.approx(0.75 + 0.25 * center)
        assert var[channel].item() == pytest.approx(1.5 + 0.25 * spread)


def test_without_a_prior_it_is_what_batch_norm_would_track():
    x, norm = torch.randn(5, 3, 2), nn.BatchNorm1d(3, momentum=1.0)
    norm(x)
    mean, var = mixed_statistics(x, torch.ones(3), torch.ones(3), prior_strength=0.0)
    torch.testing.assert_close((mean, var), (norm.running_mean, norm.running_var))
    assert torch.equal(mixed_statistics(x, None, None, prior_strength=0.0)[0], mean)


def test_an_infinite_prior_keeps_the_training():
    x, mean, var = torch.randn(5, 3), torch.randn(3), torch.rand(3)
    found = mixed_statistics(x, mean, var, prior_strength=float("inf"))
    assert torch.equal(found[0], mean)
    assert torch.equal(found[1], var)
    assert not BatchNormAdaptation(prior_strength=float("inf")).active(step=0)


def test_half_precision_is_summed_in_single_precision():
    """A sum of 4096 halves overflows."""
    x = torch.full((4096, 1), 60.0, dtype=torch.float16)
    mean, _ = mixed_statistics(x, torch.zeros(1), torch.ones(1), prior_strength=0.0)
    assert mean.item() == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1, 2), torch.ones(2), torch.ones(2)), "fewer than two values"),
        ((torch.ones(3), torch.ones(3), torch.ones(3)), r"\(3,\) must be \(N, C, ...\)"),
        ((torch.ones(4, 2), None, None), "Set prior_strength=0"),
        ((torch.ones(4, 2), torch.ones(3), torch.ones(2)), r"mean of the shape \(3,\) must have the shape \(2,\)"),
    ],
    ids=["one row", "one dimension", "no statistics", "other channels"],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mixed_statistics(*arguments)


@pytest.mark.parametrize("make", [BatchNormAdaptation, lambda **s: mixed_statistics(torch.ones(2, 1), None, None, **s)])
def test_a_negative_prior_is_refused(make):
    with pytest.raises(ValueError, match=r"prior_strength=-1\.0 must be >= 0"):
        make(prior_strength=-1.0)
