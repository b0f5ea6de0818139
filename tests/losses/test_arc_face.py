import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives.losses import ArcFaceLoss, arc_face_loss


def with_cosines(*cosines):
    """Features and a head whose cosines are these: the features are the first axis."""
    head = nn.Linear(2, len(cosines))
    head.weight.data = 7 * torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])
    return torch.tensor([[3.0, 0.0]]), head


def test_by_hand():
    """Cosines 0.6, 0.3, -0.2, scale 30, margin 0.5: cos(0.927295 + 0.5) = 0.143012; log-sum-exp minus 30 times it."""
    features, head = with_cosines(0.6, 0.3, -0.2)
    loss = arc_face_loss(features, head, torch.tensor([0]), margin=0.5, scale=30.0)
    torch.testing.assert_close(loss, torch.tensor([4.718694]), rtol=1e-5, atol=0)


def test_the_slope_contains_that_of_the_angle():
    """-30 (1 - p) sin(theta + m) / sin(theta) = -36.783 at the cosine 0.6."""
    angle = torch.tensor(math.acos(0.6), dtype=torch.float64, requires_grad=True)
    head = nn.Linear(2, 3, dtype=torch.float64)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    features = torch.stack([angle.cos(), angle.sin()])[None]
    cosines = torch.tensor([0.6, 0.8, 0.8], dtype=torch.float64)
    loss = arc_face_loss(features, head, torch.tensor([0]), margin=0.5, scale=30.0)
    (slope,) = torch.autograd.grad(loss.sum(), angle)
    logits = torch.tensor([math.cos(math.acos(0.6) + 0.5), 0.8, 0.8], dtype=torch.float64) * 30
    shares = logits.softmax(0)
    by_hand = 30 * (1 - shares[0]) * math.sin(math.acos(0.6) + 0.5) + 30 * (shares[1] + shares[2]) * cosines[0]
    torch.testing.assert_close(slope, by_hand)


def test_beyond_half_a_turn_it_goes_on_falling():
    """At the cosine -0.95 the angle 2.824 + 0.5 is above pi: -0.95 - 0.5 sin 0.5."""
    features, head = with_cosines(-0.95, 0.1, 0.2)
    loss = arc_face_loss(features, head, torch.tensor([0]), margin=0.5, scale=30.0)
    torch.testing.assert_close(loss, torch.tensor([41.739970]), rtol=1e-5, atol=0)


def test_without_a_margin_it_is_cross_entropy_of_cosines():
    features, head = with_cosines(0.6, 0.3, -0.2)
    expected = F.cross_entropy(10 * torch.tensor([[0.6, 0.3, -0.2]]), torch.tensor([1]), reduction="none")
    torch.testing.assert_close(arc_face_loss(features, head, torch.tensor([1]), margin=0.0, scale=10.0), expected)


def test_features_along_a_row_have_a_finite_slope():
    features = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], requires_grad=True)
    head = nn.Linear(2, 2)
    head.weight.data = torch.eye(2)
    arc_face_loss(features, head, torch.tensor([0, 0])).sum().backward()
    assert features.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    features, head = with_cosines(0.6, 0.3, -0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ArcFaceLoss(scale=30.0)(features.bfloat16(), head, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor([4.718694]), rtol=1e-4, atol=0)


def test_refusals():
    features, _ = with_cosines(0.6, 0.3)
    with pytest.raises(ValueError, match=r"margin=4\.0 must be in \[0, pi\)"):
        ArcFaceLoss(margin=4.0)
    with pytest.raises(ValueError, match=r"scale=0\.0 must be > 0"):
        ArcFaceLoss(scale=0.0)
    with pytest.raises(ValueError, match=r"The head Identity has no weight \(C, 2\)"):
        arc_face_loss(features, nn.Identity(), torch.tensor([0]))
    with pytest.raises(ValueError, match="have one class"):
        arc_face_loss(features, nn.Linear(2, 1), torch.tensor([0]))
