import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import FocalLoss, focal_loss

LOGITS, TARGET = torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([2])


def test_by_hand():
    """p_y = 0.8 and 0.25: 0.2² · 0.22314 = 0.0089257 and 0.75² · 1.38629 = 0.7797905."""
    logits = torch.tensor([[0.8, 0.2], [0.75, 0.25]]).log()
    losses = focal_loss(logits, torch.tensor([0, 1]), gamma=2.0)
    torch.testing.assert_close(losses, torch.tensor([0.0089257, 0.7797905]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("target", "expected"), [(TARGET, 1.882780), (torch.tensor([[0.7, 0.3, 0.0]]), 0.277918)], ids=["class", "shares"]
)
def test_worked_values(target, expected):
    """p = (0.65900, 0.24243, 0.09857): 0.90143² · 2.31703, and 0.7 · 0.341² · 0.41703 + 0.3 · 0.75757² · 1.41703."""
    torch.testing.assert_close(focal_loss(LOGITS, target), torch.tensor([expected]), rtol=1e-5, atol=0)


def test_without_gamma_it_is_cross_entropy():
    logits, target = torch.randn(5, 3), torch.arange(5) % 3
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0), F.cross_entropy(logits, target, reduction="none"))
    weights = (0.5, 2.0, 1.0)
    expected = F.cross_entropy(logits, target, torch.tensor(weights), reduction="none")
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0, class_weights=weights), expected)


def test_the_gradient_is_that_of_cross_entropy_times_a_factor():
    """(1 - p)^γ - γ p (1 - p)^(γ - 1) log p, from the product rule."""
    logits, target = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.arange(6) % 4
    ce = F.cross_entropy(logits, target, reduction="none")
    p = (-ce).exp()[:, None].detach()
    plain, focal = (torch.autograd.grad(x.sum(), logits)[0] for x in (ce, focal_loss(logits, target, gamma=1.5)))
    torch.testing.assert_close(focal, plain * ((1 - p) ** 1.5 - 1.5 * p * (1 - p) ** 0.5 * p.log()))


def test_the_probability_is_taken_before_the_class_weight():
    """exp(-3 · CE) in place of p is a common mistake: 0.637457 in place of 3 · 0.341² · 0.41703 = 0.145477."""
    loss = focal_loss(LOGITS, torch.tensor([0]), class_weights=(3.0, 1.0, 1.0))
    torch.testing.assert_close(loss, torch.tensor([0.145477]), rtol=1e-5, atol=0)


def test_weights_of_classes_and_probabilities():
    weights, soft = (3.0, 1.0, 0.5), torch.tensor([[0.7, 0.3, 0.0]])
    parts = [focal_loss(LOGITS, torch.tensor([k]), class_weights=weights) for k in (0, 1)]
    expected = 0.7 * parts[0] + 0.3 * parts[1]
    torch.testing.assert_close(focal_loss(LOGITS, soft, class_weights=weights), expected)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0])
def test_a_saturated_sample_has_no_gradient_and_no_nan(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0]), gamma=gamma)
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [[0, 0, 0]]


def test_a_masked_class_counts_only_with_a_share():
    masked = torch.tensor([[2.0, 1.0, -torch.inf]])
    assert focal_loss(masked, torch.tensor([[0.5, 0.5, 0.0]])).isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -1.0}, r"gamma=-1\.0 must be >= 0"),
        ({"class_weights": (1.0, -1.0)}, r"class_weights\[1\]=-1\.0 must be >= 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FocalLoss(**settings)


def test_weights_of_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"class_weights of 2 classes do not fit logits of the shape \(1, 3\)"):
        FocalLoss(class_weights=(1.0, 2.0))(LOGITS, TARGET)
