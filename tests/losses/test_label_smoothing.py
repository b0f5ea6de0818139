import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy

from lightning_objectives.losses import LabelSmoothingLoss, label_smoothing_loss

LOGITS, TARGET = torch.tensor([[2.0, 1.0, 0.1], [0.3, -2.0, 1.0]]), torch.tensor([0, 1])


def test_by_hand():
    """p = (0.65900, 0.24243, 0.09857), -log p = (0.41703, 1.41703, 2.31703): 0.9 · 0.41703 + 0.1 · 4.15109 / 3."""
    losses = label_smoothing_loss(LOGITS[:1], TARGET[:1], smoothing=0.1)
    torch.testing.assert_close(losses, torch.tensor([0.513697]), rtol=0, atol=1e-6)


def test_a_target_of_probabilities_by_hand():
    """0.9 · (0.7 · 0.41703 + 0.3 · 1.41703) + 0.1 · 4.15109 / 3."""
    losses = label_smoothing_loss(LOGITS[:1], torch.tensor([[0.7, 0.3, 0.0]]))
    torch.testing.assert_close(losses, torch.tensor([0.783697]), rtol=0, atol=1e-6)


def test_equals_torch_and_timm():
    losses = label_smoothing_loss(LOGITS, TARGET, smoothing=0.3)
    torch.testing.assert_close(losses, F.cross_entropy(LOGITS, TARGET, reduction="none", label_smoothing=0.3))
    torch.testing.assert_close(losses.mean(), LabelSmoothingCrossEntropy(0.3)(LOGITS, TARGET))


def test_the_ends():
    """Cross entropy, and the mean over the classes whatever the target is."""
    none = label_smoothing_loss(LOGITS, TARGET, smoothing=0.0)
    torch.testing.assert_close(none, F.cross_entropy(LOGITS, TARGET, reduction="none"))
    whole = label_smoothing_loss(LOGITS, TARGET, smoothing=1.0)
    torch.testing.assert_close(whole, label_smoothing_loss(LOGITS, TARGET.flip(0), smoothing=1.0))


def test_the_other_form_is_this_one_at_another_smoothing():
    """0.2 shared among the two other classes is a smoothing of 0.2 · 3 / 2."""
    share = torch.tensor([[0.8, 0.1, 0.1]])
    expected = F.cross_entropy(LOGITS[:1], share, reduction="none")
    torch.testing.assert_close(label_smoothing_loss(LOGITS[:1], TARGET[:1], smoothing=0.3), expected)


def test_the_least_loss_is_the_entropy_of_the_smoothed_target():
    smooth = torch.tensor([[0.9, 0.05, 0.05]])
    least = -(smooth * smooth.log()).sum(1)
    torch.testing.assert_close(label_smoothing_loss(smooth.log(), TARGET[:1], smoothing=0.15), least)


def test_a_masked_class_is_infinite_only_if_it_has_a_share():
    masked = torch.tensor([[2.0, 1.0, -torch.inf]])
    assert label_smoothing_loss(masked, TARGET[:1]).isposinf()
    soft = label_smoothing_loss(masked, torch.tensor([[0.5, 0.5, 0.0]]), smoothing=0.0)
    assert soft.isfinite()


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_what_is_refused(smoothing):
    for run in (LabelSmoothingLoss, lambda **s: label_smoothing_loss(LOGITS, TARGET, **s)):
        with pytest.raises(ValueError, match=rf"smoothing={smoothing} must be in \[0, 1\]"):
            run(smoothing=smoothing)
