import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import PolyLoss, poly_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.1]])


def test_by_hand():
    """p = 0.24243: 1.41703 + 2 · 0.75757 = 2.932164."""
    torch.testing.assert_close(poly_loss(LOGITS, torch.tensor([1]), epsilon=2.0), torch.tensor([2.932164]))


def test_a_target_of_probabilities_is_the_papers_own_form():
    """Cross entropy + ε (1 - sum of q p)."""
    soft = torch.tensor([[0.7, 0.3, 0.0]])
    expected = F.cross_entropy(LOGITS, soft, reduction="none") + 1.5 * (1 - (soft * LOGITS.softmax(1)).sum(1))
    torch.testing.assert_close(poly_loss(LOGITS, soft, epsilon=1.5), expected)


def test_it_changes_the_first_coefficient_of_the_expansion():
    """p = 0.7: (1 + ε) 0.3 + 0.3² / 2 + 0.3³ / 3 + ..."""
    logits = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    series = (1 + 0.5) * 0.3 + sum(0.3**j / j for j in range(2, 60))
    assert poly_loss(logits, torch.tensor([0]), epsilon=0.5).item() == pytest.approx(series, abs=1e-12)


def test_the_ends():
    """Cross entropy at 0; nothing where p is 1; at -1 no slope there."""
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    ce = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(poly_loss(logits, target, epsilon=0.0), ce)
    sure = torch.tensor([[100.0, 0.0, 0.0]])
    assert poly_loss(sure, torch.tensor([0]), epsilon=5.0).item() == 0


@pytest.mark.parametrize("epsilon", [-1.5, float("inf")])
def test_what_is_refused(epsilon):
    with pytest.raises(ValueError, match=rf"epsilon={epsilon} must be >= -1"):
        PolyLoss(epsilon=epsilon)
