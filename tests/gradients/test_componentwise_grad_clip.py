import pytest
import torch
from torch import nn

from lightning_objectives.gradients import ComponentwiseGradClip, clip_to_norm


def test_by_hand():
    """A norm of 5 clipped to 2: 3 * 2/5 and 4 * 2/5."""
    torch.testing.assert_close(clip_to_norm(torch.tensor([3.0, 4.0]), max_norm=2.0), torch.tensor([1.2, 1.6]))


@pytest.mark.parametrize("max_norm", [0.01, 0.5, 5.0])
def test_equals_torch_on_each_tensor(max_norm):
    params = [nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), (), (2, 2, 2))]
    for p in params:
        p.grad = torch.randn_like(p)
    new = ComponentwiseGradClip(max_norm=max_norm).update([p.grad.clone() for p in params], params, {})
    for p in params:
        nn.utils.clip_grad_norm_([p], max_norm)
    torch.testing.assert_close(new, [p.grad for p in params])


def test_a_small_gradient_is_kept_to_the_bit_and_zero_stays_zero():
    small = torch.randn(7) * 1e-3
    assert torch.equal(clip_to_norm(small, max_norm=1.0), small)
    assert torch.equal(clip_to_norm(torch.zeros(3)), torch.zeros(3))


def test_infinite_is_inactive():
    assert not ComponentwiseGradClip(max_norm=float("inf")).active(step=0)
    assert ComponentwiseGradClip().active(step=0)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_what_is_refused(max_norm):
    with pytest.raises(ValueError, match=f"max_norm={max_norm} must be > 0"):
        ComponentwiseGradClip(max_norm=max_norm)
