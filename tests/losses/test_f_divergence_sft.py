import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import FDivergenceSFTLoss, f_divergence_sft_loss
from lightning_objectives.testing import assert_laws

DIVERGENCES = {"pearson": lambda u: (u - 1) ** 2, "hellinger": lambda u: (u.sqrt() - 1) ** 2}
FIRST = torch.tensor([0])


def with_reward(reward):
    """Logits of two classes and those of a reference, between which the first class has this log-ratio."""
    reference = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log()
    first = reference[0, 0] + reward
    return torch.stack([first, torch.log(-torch.expm1(first))])[None], reference


def test_by_hand():
    """p = 0.8 of a reference's 0.4, beta 2: r = 1.386294, and -r + r² / 4 = -0.905841; -r / (1 + r) = -0.580940."""
    logits, reference = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
    for divergence, value in {"pearson": -0.905841, "hellinger": -0.580940}.items():
        loss = f_divergence_sft_loss(logits, FIRST, reference, beta=2.0, divergence=divergence)
        assert loss.item() == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("reward", [-0.45, -0.2, 0.0, 0.3, 0.9])
def test_it_is_the_conjugate_of_the_divergence(divergence, reward):
    """The greatest u t - f(u) over a grid of u >= 0, at t = -r."""
    u = torch.linspace(0, 8, 800_001, dtype=torch.float64)
    conjugate = (u * -reward - DIVERGENCES[divergence](u)).amax()
    logits, reference = with_reward(reward)
    loss = f_divergence_sft_loss(logits, FIRST, reference, beta=1.0, divergence=divergence)
    torch.testing.assert_close(loss[0], conjugate, rtol=0, atol=1e-8)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_at_the_reference_the_gradient_is_that_of_cross_entropy_times_beta(divergence):
    logits, target = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.arange(6) % 4
    loss = f_divergence_sft_loss(logits, target, logits.detach() + 3, beta=0.3, divergence=divergence)
    torch.testing.assert_close(loss, torch.zeros(6).double())
    (ours,) = torch.autograd.grad(loss.sum(), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), logits)
    torch.testing.assert_close(ours, 0.3 * plain)


def test_a_small_beta_gives_cross_entropy():
    logits, reference, target = torch.randn(6, 4).double(), torch.randn(6, 4).double(), torch.arange(6) % 4
    plain = F.cross_entropy(logits, target, reduction="none") - F.cross_entropy(reference, target, reduction="none")
    small = f_divergence_sft_loss(logits, target, reference, beta=1e-7) / 1e-7
    torch.testing.assert_close(small, plain, rtol=0, atol=1e-5)


def test_pearson_pulls_back_beyond_a_reward_of_two_and_hellinger_never():
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[-4.0, 0.0]])
    pulls = {}
    for divergence in DIVERGENCES:
        loss = f_divergence_sft_loss(logits, FIRST, reference, beta=1.0, divergence=divergence)
        pulls[divergence] = torch.autograd.grad(loss.sum(), logits)[0][0, 0].item()
    assert pulls["pearson"] > 0 > pulls["hellinger"]


def test_beyond_its_pole_hellinger_keeps_pulling():
    """The formula would give -1.5 at r = -3, better than the reference; its tangent from -1/2 gives 11."""
    for reward, value in {-0.5: 1.0, -1.0: 3.0, -3.0: 11.0}.items():
        logits, reference = with_reward(torch.tensor(reward, dtype=torch.float64))
        loss = f_divergence_sft_loss(logits, FIRST, reference, beta=1.0, divergence="hellinger")
        assert loss.item() == pytest.approx(value)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_target_of_probabilities_gives_the_expectation(divergence):
    logits, reference = torch.randn(1, 3), torch.randn(1, 3)
    one, two = (
        f_divergence_sft_loss(logits, torch.tensor([k]), reference, beta=1.0, divergence=divergence) for k in (0, 2)
    )
    soft = torch.tensor([[0.25, 0.0, 0.75]])
    mixed = f_divergence_sft_loss(logits, soft, reference, beta=1.0, divergence=divergence)
    torch.testing.assert_close(mixed, 0.25 * one + 0.75 * two)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_classes_that_both_rule_out_do_not_count(divergence):
    masked = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    reference = torch.tensor([[0.5, 0.0, -torch.inf]])
    soft = torch.tensor([[0.5, 0.3, 0.2]])
    loss = f_divergence_sft_loss(masked, soft, reference, beta=1.0, divergence=divergence)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert masked.grad.isfinite().all()
    alone = f_divergence_sft_loss(masked, torch.tensor([2]), torch.zeros(1, 3), beta=1.0, divergence=divergence)
    assert alone.item() > 1e29


def test_the_reference_is_a_constant():
    reference = torch.zeros(1, 2, requires_grad=True)
    assert not f_divergence_sft_loss(torch.zeros(1, 2), FIRST, reference, beta=1.0).requires_grad


def test_the_other_divergence_keeps_the_laws():
    assert_laws(FDivergenceSFTLoss(beta=1.0, divergence="hellinger"))


def test_refusals():
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be > 0 and finite"):
            FDivergenceSFTLoss(beta=beta)
    with pytest.raises(ValueError, match="divergence='kl' must be 'pearson' or 'hellinger'"):
        FDivergenceSFTLoss(beta=1.0, divergence="kl")
    with pytest.raises(ValueError, match=r"reference_logits of the shape \(1, 3\)"):
        f_divergence_sft_loss(torch.zeros(1, 2), FIRST, torch.zeros(1, 3), beta=1.0)
