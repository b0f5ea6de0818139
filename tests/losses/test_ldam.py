import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import LDAMLoss, ldam_loss

COSINES, COUNTS = torch.tensor([[0.5, 0.2, -0.3]]), (100, 10, 1)


def slow(row, y, margins, scale):
    """One sample in plain Python."""
    z = [scale * (c - (margins[y] if k == y else 0)) for k, c in enumerate(row)]
    return math.log(sum(math.exp(v) for v in z)) - z[y]


def test_by_hand():
    """m = 0.5 · 10^(-1/4) = 0.281171, so the scaled cosines are 15, -2.435120 and -9: 15 + 2.435120 + 1e-8."""
    torch.testing.assert_close(ldam_loss(COSINES, torch.tensor([1]), counts=COUNTS), torch.tensor([17.435120]))


def test_equals_a_plain_loop():
    """The margins are 0.5 divided by the fourth root of 100, 10 and 1: 0.158114, 0.281171, 0.5."""
    cosines, target = torch.rand(6, 3) * 2 - 1, [0, 1, 2, 2, 1, 0]
    margins = [0.158114, 0.281171, 0.5]
    expected = [slow(row, y, margins, 8.0) for row, y in zip(cosines.tolist(), target)]
    losses = ldam_loss(cosines, torch.tensor(target), counts=COUNTS, scale=8.0)
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_target_of_probabilities_is_the_expectation():
    soft = torch.tensor([[0.7, 0.0, 0.3]])
    parts = [ldam_loss(COSINES, torch.tensor([k]), counts=COUNTS) for k in range(3)]
    torch.testing.assert_close(ldam_loss(COSINES, soft, counts=COUNTS), 0.7 * parts[0] + 0.3 * parts[2])


def test_without_a_margin_it_is_cross_entropy_of_scaled_cosines():
    logits, target = torch.rand(6, 3), torch.arange(6) % 3
    losses = ldam_loss(logits, target, counts=COUNTS, max_margin=0.0, scale=5.0)
    torch.testing.assert_close(losses, F.cross_entropy(5 * logits, target, reduction="none"))


def test_equal_counts_give_one_margin_for_all():
    logits, target = torch.rand(6, 3), torch.arange(6) % 3
    lowered = logits - 0.4 * F.one_hot(target, 3)
    losses = ldam_loss(logits, target, counts=(5, 5, 5), max_margin=0.4, scale=2.0)
    torch.testing.assert_close(losses, F.cross_entropy(2 * lowered, target, reduction="none"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_margin": -1.0}, r"max_margin=-1\.0 must be >= 0"),
        ({"scale": 0.0}, r"scale=0\.0 must be > 0"),
        ({"counts": (1, 0)}, r"counts\[1\]=0 must be > 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LDAMLoss(**{"counts": COUNTS, **settings})
