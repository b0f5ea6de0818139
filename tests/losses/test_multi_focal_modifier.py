import math

import pytest
import torch

from lightning_objectives.losses import MultiFocalModifierLoss, asymmetric_loss, multi_focal_modifier_loss

COUNTS = (100, 10, 1)
WEIGHTS = [1.0, 3.302585 ** (1 / 6), 5.605170 ** (1 / 6)]
"""(1 + log 10^j)^(1/6) for j of 0, 1, 2."""


def test_equals_a_plain_loop():
    logits, labels = torch.randn(5, 3), torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0.3, 1]])
    expected = []
    for row, targets in zip(logits.tolist(), labels.tolist()):
        loss = 0.0
        for x, t, w in zip(row, targets, WEIGHTS):
            p = 1 / (1 + math.exp(-x))
            low = max(p - 0.05, 0)
            loss -= w * (t * (1 - p) ** 0.5 * math.log(p) + (1 - t) * low ** (4 + w) * math.log(1 - low))
        expected.append(loss)
    losses = multi_focal_modifier_loss(logits, labels, counts=COUNTS, gamma_neg=4.0, gamma_pos=0.5)
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"counts": (7, 7, 7)}, {"counts": COUNTS, "power": 0.0}])
@pytest.mark.parametrize("stop", [True, False])
def test_weights_of_one_are_the_asymmetric_loss(settings, stop):
    logits, labels = torch.randn(5, 3, requires_grad=True), (torch.rand(5, 3) < 0.4).float()
    ours = multi_focal_modifier_loss(logits, labels, gamma_neg=3.0, **settings, stop_gradient=stop)
    theirs = asymmetric_loss(logits, labels, gamma_neg=4.0, stop_gradient=stop)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(losses.sum(), logits)[0] for losses in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_common_factor_of_the_counts_changes_nothing():
    logits, labels = torch.randn(5, 3), torch.ones(5, 3)
    losses = multi_focal_modifier_loss(logits, labels, counts=(1000, 100, 10))
    torch.testing.assert_close(losses, multi_focal_modifier_loss(logits, labels, counts=COUNTS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_neg": -1.0}, r"gamma_neg=-1\.0 must be >= 0"),
        ({"power": -1.0}, r"power=-1\.0 must be >= 0"),
        ({"clip": 1.0}, r"clip=1\.0 must be in \[0, 1\)"),
        ({"counts": (1, 0)}, r"counts\[1\]=0 must be > 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiFocalModifierLoss(**{"counts": COUNTS, **settings})
