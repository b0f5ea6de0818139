import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import LogitAdjustedLoss, logit_adjusted_loss

LOGITS, COUNTS = torch.tensor([[2.0, 1.0, 0.1]]), (100, 10, 1)


@pytest.mark.parametrize(("strength", "expected"), [(1.0, 3.340154), (2.0, 5.608857)])
def test_worked_values(strength, expected):
    """At 1: log(100 e^2 + 10 e^1 + e^0.1) - log 10 - 1 = 6.642739 - 3.302585."""
    loss = logit_adjusted_loss(LOGITS, torch.tensor([1]), counts=COUNTS, strength=strength)
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=0, atol=2e-6)


def test_a_target_of_probabilities():
    soft = torch.tensor([[0.2, 0.3, 0.5]])
    prior = torch.tensor([100.0, 10, 1]) / 111
    expected = F.cross_entropy(LOGITS + 0.5 * prior.log(), soft, reduction="none")
    torch.testing.assert_close(logit_adjusted_loss(LOGITS, soft, counts=COUNTS, strength=0.5), expected)


def test_equal_counts_and_no_strength_are_cross_entropy():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    expected = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(logit_adjusted_loss(logits, target, counts=(7, 7, 7), strength=2.0), expected)
    torch.testing.assert_close(logit_adjusted_loss(logits, target, counts=COUNTS, strength=0.0), expected)


def test_a_common_factor_of_the_counts_changes_nothing():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    shares = tuple(n / 111 for n in COUNTS)
    torch.testing.assert_close(
        logit_adjusted_loss(logits, target, counts=shares), logit_adjusted_loss(logits, target, counts=COUNTS)
    )


def test_very_rare_classes_and_very_great_counts_are_exact():
    """1e-16 to the power of a strength of 4 is below every guard: log(1e64 + 1) = 147.365 = 64 log 10."""
    loss = logit_adjusted_loss(torch.zeros(1, 2).half(), torch.tensor([1]), counts=(1e16, 1), strength=4.0)
    torch.testing.assert_close(loss, torch.tensor([147.365446]))


def test_the_constant_logits_of_a_network_that_knows_the_prior_alone_are_optimal():
    """Plain logits of zero, with the adjustment, are the prior: the gradient over such a data set is 0."""
    logits = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    losses = logit_adjusted_loss(logits, torch.tensor([0, 0, 0, 1]), counts=(3, 1))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient.sum(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_counts_may_be_a_tensor_and_are_kept_as_numbers():
    assert LogitAdjustedLoss(counts=torch.bincount(torch.tensor([0, 0, 1]))).counts == (2, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counts": (3, 0)}, r"counts\[1\]=0 must be > 0 and finite.* such as 0\.5, or drop the class"),
        ({"counts": (3, float("nan"))}, r"counts\[1\]=nan must be > 0"),
        ({"counts": (3,)}, r"counts=\(3,\) must have one number for each"),
        ({"counts": COUNTS, "strength": -1.0}, r"strength=-1\.0 must be >= 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LogitAdjustedLoss(**settings)


def test_counts_of_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"counts of 2 classes do not fit logits of the shape \(1, 3\)"):
        LogitAdjustedLoss(counts=(3, 1))(LOGITS, torch.tensor([0]))
