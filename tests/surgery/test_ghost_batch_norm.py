import pytest
import torch
from torch import nn

from lightning_objectives.kinds import LayerPlace
from lightning_objectives.surgery import GhostBatchNorm


def called(layer, inputs, size):
    return GhostBatchNorm(size=size).call(layer, LayerPlace(), layer.forward, inputs)


def test_by_hand():
    """Parts {0, 2} and {10, 12} have the means 1 and 11 and the variance 1, so each is (-1, 1) up to eps."""
    layer = nn.BatchNorm1d(1, momentum=0.5)
    output = called(layer, torch.tensor([[0.0], [2.0], [10.0], [12.0]]), 2)
    torch.testing.assert_close(output.flatten(), torch.tensor([-1.0, 1, -1, 1]), rtol=0, atol=1e-4)
    # 0 -> 0.5 -> 5.75, and 1 -> (1 + 2) / 2 -> (1.5 + 2) / 2, as torch keeps the unbiased variance 2.
    torch.testing.assert_close(layer.running_mean, torch.tensor([5.75]))
    torch.testing.assert_close(layer.running_var, torch.tensor([1.75]))


@pytest.mark.parametrize("size", [8, 100])
def test_a_part_as_large_as_the_batch_is_batch_norm(size):
    layers = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    inputs = torch.randn(8, 3, 2, 2)
    assert torch.equal(called(layers[0], inputs, size), layers[1](inputs))
    assert torch.equal(layers[0].running_var, layers[1].running_var)


@pytest.mark.parametrize(("rows", "size", "parts"), [(3, 2, 1), (5, 2, 2), (7, 3, 3), (64, 16, 4), (2, 2, 1)])
def test_no_part_is_a_single_row(rows, size, parts):
    layer = nn.BatchNorm1d(2)
    called(layer, torch.randn(rows, 2), size)
    assert layer.num_batches_tracked == parts


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="Linear is no BatchNorm"):
        GhostBatchNorm().check(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="joins the batches of all processes"):
        GhostBatchNorm().check(nn.SyncBatchNorm(2), 1)
    with pytest.raises(ValueError, match="size=1 must be >= 2"):
        GhostBatchNorm(size=1)
