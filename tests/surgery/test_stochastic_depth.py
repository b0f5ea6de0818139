import pytest
import torch
from torch import nn

from lightning_objectives.kinds import LayerPlace
from lightning_objectives.surgery import StochasticDepth


def called(method, layer, *args, number=1, count=2, **kwargs):
    return method.call(layer, LayerPlace(number, count, "layer", 4), layer.forward, *args, **kwargs)


def test_the_rates_of_the_paper():
    """l p / L with L = 5 and p = 0.5; the expected depth of 54 blocks is 54 - 0.5 (1 + ... + 54) / 54 = 40.25."""
    method = StochasticDepth(rate=0.5)
    assert [round(method.rate_of(LayerPlace(n, 5)), 6) for n in range(5)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert sum(1 - method.rate_of(LayerPlace(n, 54)) for n in range(54)) == pytest.approx(40.25)
    assert StochasticDepth(rate=0.5, growing=False).rate_of(LayerPlace(0, 5)) == 0.5


def test_a_branch_is_dropped_whole_or_scaled():
    torch.manual_seed(0)
    inputs = torch.rand(400, 3) + 1
    layer = nn.Identity()
    method = StochasticDepth(rate=0.25, growing=False)
    output = method.call(layer, LayerPlace(samples=400), layer.forward, inputs)
    kept = output[:, 0] != 0
    torch.testing.assert_close(output, torch.where(kept[:, None], inputs / 0.75, 0.0))
    assert 0.68 < kept.float().mean() < 0.82


def test_a_batch_is_dropped_by_one_draw():
    torch.manual_seed(0)
    method, layer = StochasticDepth(rate=0.5, growing=False, mode="batch"), nn.Identity()
    sums = {round(float(called(method, layer, torch.ones(4, 2)).sum())) for _ in range(20)}
    assert sums == {0, 16}


def test_a_block_that_is_dropped_is_its_input():
    """x + (b / (1 - p)) (f(x) - x): with x = 1, f(x) = 3 and p = 1/2 that is 1 or 5."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def forward(self, hidden, scale):
            return hidden * scale

    method = StochasticDepth(rate=0.5, growing=False, part="block")
    outputs = torch.cat([called(method, Block(), torch.ones(4, 1), scale=3.0) for _ in range(5)])
    assert set(outputs.flatten().tolist()) == {1.0, 5.0}
    outputs = called(method, Block(), hidden=torch.ones(4, 1), scale=3.0)
    assert set(outputs.flatten().tolist()) <= {1.0, 5.0}


def test_the_first_of_several_outputs_is_dropped():
    class Two(nn.Module):
        def forward(self, x):
            return x, "weights"

    output, rest = called(StochasticDepth(rate=1.0), Two(), torch.ones(4, 2))
    assert not output.any()
    assert rest == "weights"


def test_the_samples_may_lie_in_another_dimension():
    torch.manual_seed(0)
    layer, method = nn.Identity(), StochasticDepth(rate=0.5, growing=False, sample_dim=1)
    output = called(method, layer, torch.ones(5, 4, 2))
    assert {float(column.sum()) for column in output.unbind(1)} <= {0.0, 20.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.5}, r"rate=1\.5 must be in"),
        ({"part": "head"}, "part='head' must be 'branch' or 'block'"),
        ({"mode": "pixel"}, "mode='pixel' must be 'row' or 'batch'"),
        ({"sample_dim": -1}, "sample_dim=-1 must be >= 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StochasticDepth(**settings)


def test_a_layer_without_a_tensor_is_refused():
    class Words(nn.Module):
        def forward(self, x):
            return "words"

    with pytest.raises(ValueError, match="'layer' returns a str"):
        called(StochasticDepth(), Words(), torch.ones(4, 2))
