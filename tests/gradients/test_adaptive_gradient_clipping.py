import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from lightning_objectives.gradients import AdaptiveGradientClipping, clip_to_weights


def test_by_hand():
    """Row 1: |g| = 0.1, 0.01 |w| = 0.05, so half. Row 2, with weights of 0: the limit is 0.01 · 0.001."""
    new = clip_to_weights(torch.tensor([[0.06, 0.08], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(new, torch.tensor([[0.03, 0.04], [0.00001, 0.0]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("clipping", [0.01, 0.3, 2.0])
def test_equals_timm(clipping):
    shapes = ((3, 4), (5,), (), (2, 3, 2, 2), (4, 3, 2), (1, 6))
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    params[0].data[1] = 0
    for p in params:
        p.grad = torch.randn_like(p)
    params[3].grad[0] = 0
    before = [p.grad.clone() for p in params]
    new = AdaptiveGradientClipping(clipping=clipping, exempt_last=0).update(before, params, {})
    adaptive_clip_grad(params, clip_factor=clipping)
    torch.testing.assert_close(new, [p.grad for p in params])
    changed = [not torch.equal(a, b) for a, b in zip(new, before)]
    assert any(changed)


def test_a_small_gradient_is_kept_to_the_bit_and_zero_stays_zero():
    small, weight = torch.randn(4, 3) * 1e-4, torch.randn(4, 3) + 1
    assert torch.equal(clip_to_weights(small, weight), small)
    assert torch.equal(clip_to_weights(torch.zeros(4, 3), torch.zeros(4, 3)), torch.zeros(4, 3))


def test_what_is_not_a_number_stays_visible():
    new = clip_to_weights(torch.tensor([[torch.nan, 1.0], [0.0, 1e-3]]), torch.ones(2, 2))
    assert new[0].isnan().all()
    assert new[1].tolist() == pytest.approx([0.0, 1e-3])


def test_half_precision_is_measured_in_float32():
    """The square of 300 is beyond float16."""
    new = clip_to_weights(torch.tensor([[300.0, 400.0]]).half(), torch.tensor([[300.0, 400.0]]).half(), clipping=0.5)
    torch.testing.assert_close(new, torch.tensor([[150.0, 200.0]]).half())


@pytest.mark.parametrize(("exempt", "clipped"), [(0, 3), (2, 1), (5, 0)])
def test_the_last_tensors_keep_their_gradients(exempt, clipped):
    params, gradients = [torch.ones(2, 2)] * 3, [torch.ones(2, 2) for _ in range(3)]
    new = AdaptiveGradientClipping(exempt_last=exempt).update(gradients, params, {})
    assert [a is not b for a, b in zip(new, gradients)] == [place < clipped for place in range(3)]


def test_infinite_is_inactive():
    assert not AdaptiveGradientClipping(clipping=float("inf")).active(step=0)
    assert AdaptiveGradientClipping().active(step=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clipping": 0.0}, r"clipping=0\.0 must be > 0"),
        ({"clipping": float("nan")}, "clipping=nan must be > 0"),
        ({"eps": 0.0}, r"eps=0\.0 must be > 0"),
        ({"exempt_last": -1}, "exempt_last=-1 must be >= 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveGradientClipping(**settings)
