import pytest
import torch
from torch import nn

from lightning_objectives.combination import GradientAlignment
from lightning_objectives.distillation import DualHead, dual_head_loss


def test_by_hand():
    """T = 2 and s - t = 4 and -2: 4 (log cosh 1 + log cosh 1/2) = 4 (0.4337808 + 0.1201145), times alpha."""
    s, t = torch.tensor([[5.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(dual_head_loss(s, t), torch.tensor([2.2155812]))
    torch.testing.assert_close(DualHead(alpha=0.1)(s, t), torch.tensor([0.22155812]))


def test_the_auxiliary_heads():
    linear, mlp = DualHead(), DualHead(auxiliary="mlp")
    for dual in (linear, mlp):
        assert dual.auxiliary_head is None
        dual.build(features=6, classes=3)
        assert dual.auxiliary_head(torch.ones(4, 6)).shape == (4, 3)
    assert isinstance(linear.auxiliary_head, nn.Linear)
    layers = [type(layer) for layer in mlp.auxiliary_head]
    assert layers == [nn.Linear, nn.Dropout, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in mlp.parameters()] == [(200, 6), (200,), (200,), (200,), (3, 200), (3,)]
    assert mlp.auxiliary_head[1].p == 0.1


def test_alignment_and_idleness_are_as_asked():
    assert DualHead().combination() is None
    assert isinstance(DualHead(align=True).combination(), GradientAlignment)
    assert [DualHead(alpha=0.0).idle, DualHead(stop_epoch=0).idle, DualHead().idle] == [True, True, False]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"alpha": -1.0}, "alpha=-1.0 must be >= 0"),
        ({"temperature": 0.0}, "temperature=0.0 must be > 0"),
        ({"auxiliary": "deep"}, "auxiliary='deep' must be 'linear' or 'mlp'"),
        ({"stop_epoch": -1}, "stop_epoch=-1 must be >= 0"),
    ],
)
def test_refusals(settings, rule):
    with pytest.raises(ValueError, match=rule):
        DualHead(**settings)
