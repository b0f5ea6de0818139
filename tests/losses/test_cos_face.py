import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives.losses import ArcFaceLoss, CosFaceLoss, cos_face_loss


def with_cosines(*cosines):
    """Features and a head whose cosines are these: the features are the first axis."""
    head = nn.Linear(2, len(cosines))
    head.weight.data = 7 * torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])
    return torch.tensor([[3.0, 0.0]]), head


def test_by_hand():
    """Cosines 0.6, 0.3, -0.2, scale 30, margin 0.35: log(1 + e^(9 - 7.5) + e^(-6 - 7.5))."""
    features, head = with_cosines(0.6, 0.3, -0.2)
    loss = cos_face_loss(features, head, torch.tensor([0]), margin=0.35, scale=30.0)
    torch.testing.assert_close(loss, torch.tensor([1.701414]), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, torch.tensor([math.log(1 + math.exp(1.5) + math.exp(-13.5))]))


def test_the_slope_by_the_cosine_is_that_of_cross_entropy():
    """The margin is a constant: the gradient of the target's cosine is -s (1 - p), without a factor of the angle."""
    features, head = with_cosines(0.6, 0.3, -0.2)
    loss = cos_face_loss(features, head, torch.tensor([0]), margin=0.35, scale=30.0)
    loss.sum().backward()
    share = 1 / (1 + math.exp(1.5) + math.exp(-13.5))
    others = torch.tensor([math.exp(1.5), math.exp(-13.5)]) * share
    cosines = torch.tensor([0.6, 0.3, -0.2])
    slopes = 30 * torch.cat([torch.tensor([share - 1]), others])
    # The cosine of row j, (w_j . f) / (|w_j| |f|), moves by its part across w_j: f - cos w_j, over the length 7.
    rows = head.weight.detach() / 7
    expected = slopes[:, None] * (torch.tensor([1.0, 0.0]) - cosines[:, None] * rows) / 7
    torch.testing.assert_close(head.weight.grad, expected)


def test_without_a_margin_it_is_cross_entropy_of_cosines():
    features, head = with_cosines(0.6, 0.3, -0.2)
    expected = F.cross_entropy(10 * torch.tensor([[0.6, 0.3, -0.2]]), torch.tensor([1]), reduction="none")
    torch.testing.assert_close(cos_face_loss(features, head, torch.tensor([1]), margin=0.0, scale=10.0), expected)
    angles = ArcFaceLoss(margin=0.0, scale=10.0)(features, head, torch.tensor([1]))
    torch.testing.assert_close(CosFaceLoss(margin=0.0, scale=10.0)(features, head, torch.tensor([1])), angles)


def test_lengths_and_the_bias_mean_nothing():
    features, head = with_cosines(0.6, 0.3, -0.2)
    before = cos_face_loss(features, head, torch.tensor([2]))
    head.weight.data[1] *= 5
    head.bias.data += 3
    torch.testing.assert_close(cos_face_loss(0.1 * features, head, torch.tensor([2])), before)


def test_classes_may_have_any_integer_type():
    features, head = with_cosines(0.6, 0.3, -0.2)
    classes = [cos_face_loss(features, head, torch.tensor([1], dtype=dtype)) for dtype in (torch.uint8, torch.int64)]
    torch.testing.assert_close(*classes)


def test_half_precision_is_computed_in_float32():
    features, head = with_cosines(0.6, 0.3, -0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = CosFaceLoss(scale=30.0)(features.bfloat16(), head, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor([1.701414]), rtol=1e-4, atol=0)


def test_refusals():
    features, _ = with_cosines(0.6, 0.3)
    with pytest.raises(ValueError, match=r"margin=-0\.1 must be >= 0"):
        CosFaceLoss(margin=-0.1)
    with pytest.raises(ValueError, match=r"scale=0\.0 must be > 0"):
        CosFaceLoss(scale=0.0)
    with pytest.raises(ValueError, match=r"The head Identity has no weight \(C, 2\)"):
        cos_face_loss(features, nn.Identity(), torch.tensor([0]))
    with pytest.raises(ValueError, match="have one class"):
        cos_face_loss(features, nn.Linear(2, 1), torch.tensor([0]))
