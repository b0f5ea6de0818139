import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import IntegratedGainLoss, integrated_gain_loss, ldam_loss
from lightning_objectives.testing import assert_laws

COUNTS = (6, 3, 1)
TARGET = torch.tensor([0] * 6 + [1] * 3 + [2])
"""A batch with the classes of the training data."""


def cosines(seed=0):
    return torch.rand(10, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def slow(z, y, counts, alpha, scale):
    """One sample by the formula, class by class."""
    margins = [0.5 * (n / min(counts)) ** -0.25 for n in counts]
    shifted = [scale * (v - (margins[y] if c == y else 0.0)) for c, v in enumerate(z.tolist())]
    total = math.log(sum(math.exp(v) for v in shifted))
    log_p = [v - total for v in shifted]
    charge = sum(log_p[c] / counts[c] for c in range(len(counts)) if counts[c] > counts[y])
    return -sum(counts) / (len(counts) * counts[y]) * log_p[y] + charge / alpha


def test_by_hand():
    """p = 1/2 for both: log 2 · 2/3, and log 2 · 2 - log(2) / (0.5 · 3)."""
    loss = integrated_gain_loss(
        torch.zeros(2, 2), torch.tensor([0, 1]), 1.0, counts=(3, 1), alpha=0.5, max_margin=0.0, scale=1.0
    )
    torch.testing.assert_close(loss, math.log(2) * torch.tensor([2 / 3, 2 - 2 / 3]))


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_equals_a_slow_loop(scale):
    logits = cosines()
    expected = torch.tensor([slow(z, int(y), COUNTS, 0.3, scale) for z, y in zip(logits, TARGET)]).double()
    loss = integrated_gain_loss(logits, TARGET, 0.9, counts=COUNTS, scale=scale)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_before_the_last_part_it_is_ldam():
    for progress, defer in ((0.0, 0.8), (0.79, 0.8), (0.99, 1.0)):
        loss = integrated_gain_loss(cosines(), TARGET, progress, counts=COUNTS, defer=defer)
        torch.testing.assert_close(loss, ldam_loss(cosines(), TARGET, counts=COUNTS))
    after = integrated_gain_loss(cosines(), TARGET, 0.8, counts=COUNTS)
    assert not torch.allclose(after, loss)


def test_without_the_charge_it_is_ldam_with_class_weights():
    """Over the training data torch's weighted mean divides by the same."""
    logits, margins = cosines(), torch.tensor(COUNTS).double().pow(-0.25) / 2
    shifted = 30 * (logits - F.one_hot(TARGET, 3) * margins)
    expected = F.cross_entropy(shifted, TARGET, weight=1 / torch.tensor(COUNTS).double())
    loss = integrated_gain_loss(logits, TARGET, 1.0, counts=COUNTS, alpha=math.inf)
    torch.testing.assert_close(loss.mean(), expected)


def test_the_charge_is_that_of_the_authors_code():
    """-sum(w u log p) / (N alpha), with w = 1 / n, and u = -1 for each class before the target's."""
    logits, counts = cosines(), torch.tensor(COUNTS).double()
    log_p = (30 * (logits - F.one_hot(TARGET, 3) * counts.pow(-0.25) / 2)).log_softmax(1)
    utility = -(torch.arange(3) < TARGET[:, None]).double()
    expected = -(utility / counts * log_p).sum() / (len(TARGET) * 0.3)
    with_it, without = (integrated_gain_loss(logits, TARGET, 1.0, counts=COUNTS, alpha=a) for a in (0.3, math.inf))
    torch.testing.assert_close((with_it - without).mean(), expected)


def test_the_order_of_the_classes_means_nothing():
    order = torch.tensor([2, 0, 1])
    logits, counts = cosines()[:, order], [COUNTS[k] for k in order]
    loss = integrated_gain_loss(logits, order.argsort()[TARGET], 1.0, counts=counts)
    torch.testing.assert_close(loss, integrated_gain_loss(cosines(), TARGET, 1.0, counts=COUNTS))


def test_a_target_of_probabilities_gives_the_expectation():
    logits, soft = cosines(), torch.rand(10, 3).double().softmax(1)
    each = [integrated_gain_loss(logits, torch.full((10,), k), 1.0, counts=COUNTS) for k in range(3)]
    expected = sum(soft[:, k] * each[k] for k in range(3))
    torch.testing.assert_close(integrated_gain_loss(logits, soft, 1.0, counts=COUNTS), expected)


def test_a_class_that_is_ruled_out_gains_nothing():
    logits = torch.tensor([[-torch.inf, 0.1, 0.2]], dtype=torch.float64, requires_grad=True)
    for target in (torch.tensor([2]), torch.tensor([[0.0, 0.0, 1.0]]).double()):
        loss = integrated_gain_loss(logits, target, 1.0, counts=COUNTS, scale=1.0)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()


def test_other_settings_keep_the_laws():
    assert_laws(IntegratedGainLoss(counts=(5, 5, 1), defer=0.3, alpha=2.0, scale=4.0))


def test_refusals():
    for setting, value, rule in (
        ("alpha", 0.0, "must be > 0; infinity leaves"),
        ("alpha", math.nan, "must be > 0; infinity leaves"),
        ("defer", 1.5, r"must be in \[0, 1\]"),
        ("max_margin", -0.1, "must be >= 0 and finite"),
        ("scale", 0.0, "must be > 0 and finite"),
    ):
        with pytest.raises(ValueError, match=rf"{setting}=.*{rule}"):
            IntegratedGainLoss(**{"counts": COUNTS, setting: value})
    with pytest.raises(ValueError, match=r"counts\[1\]=0 must be > 0"):
        IntegratedGainLoss(counts=(3, 0))
    for progress in (0.0, 1.0):
        with pytest.raises(ValueError, match="counts of 3 classes do not fit"):
            integrated_gain_loss(torch.zeros(1, 2), torch.tensor([0]), progress, counts=COUNTS)
