import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives.regularizers import OrthogonalConv, kernel_orthogonality, orthogonal_conv


def matrix_of(weight, stride, size):
    """The layer as a matrix on images of one size, with circular padding; each column is the image of a unit image."""
    channels, k = weight.shape[1:3]
    units = torch.eye(channels * size * size, dtype=weight.dtype).view(-1, channels, size, size)
    return F.conv2d(F.pad(units, [0, k - 1, 0, k - 1], mode="circular"), weight, stride=stride).flatten(1).T


@pytest.mark.parametrize(
    ("filters", "channels", "k", "stride"), [(3, 4, 3, 1), (5, 2, 3, 1), (9, 2, 3, 2), (4, 3, 5, 2), (5, 2, 4, 2)]
)
def test_it_is_the_distance_of_the_whole_map_from_an_isometry(filters, channels, k, stride):
    """On images of 12 by 12, for each point of the output: of A Aᵀ if it is wide, else of Aᵀ A."""
    weight = torch.randn(filters, channels, k, k, dtype=torch.float64) / 3
    a = matrix_of(weight, stride, 12)
    gram = a @ a.T if len(a) <= a.shape[1] else a.T @ a
    expected = (gram - torch.eye(len(gram), dtype=torch.float64)).square().sum() / (12 // stride) ** 2
    torch.testing.assert_close(kernel_orthogonality(weight, stride=(stride, stride)), expected)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_orthogonal_rows_or_columns_at_one_tap_give_zero(shape):
    weight = torch.zeros(*shape, 3, 3, dtype=torch.float64)
    nn.init.orthogonal_(weight[:, :, 1, 0])
    assert kernel_orthogonality(weight, stride=(1, 1)).abs() < 1e-12


def test_groups_are_convolutions_of_their_own():
    layer = nn.Conv1d(6, 9, 3, groups=3, stride=2)
    parts = [kernel_orthogonality(part, stride=(2,)) for part in layer.weight.split(3)]
    torch.testing.assert_close(orthogonal_conv(layer), torch.stack(parts).sum())


def test_a_dilation_is_a_kernel_with_zeros():
    layer = nn.Conv2d(2, 3, 3, dilation=(1, 2))
    wide = torch.zeros(3, 2, 3, 5)
    wide[..., [0, 2, 4]] = layer.weight.detach()
    torch.testing.assert_close(orthogonal_conv(layer), kernel_orthogonality(wide, stride=(1, 1)))


def test_linear_layers_count_if_asked_for():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(4, 2))
    w = network[2].weight
    linear = (w @ w.T - torch.eye(2)).square().sum()
    torch.testing.assert_close(orthogonal_conv(network, linear=True), orthogonal_conv(network) + linear)


def test_its_descent_ends_at_an_isometry():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 2, 3, stride=2, dtype=torch.float64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        orthogonal_conv(layer).backward()
        optimizer.step()
    singular = torch.linalg.svdvals(matrix_of(layer.weight.detach(), 2, 8))
    torch.testing.assert_close(singular, torch.ones_like(singular), rtol=0, atol=1e-3)


def test_what_is_refused():
    with pytest.raises(ValueError, match="Linear has no convolution"):
        OrthogonalConv()(nn.Linear(2, 2))
    for weight, settings in ((torch.zeros(2, 2), {"stride": ()}), (torch.zeros(3, 2, 3), {"stride": (1, 1)})):
        with pytest.raises(ValueError, match=r"weight of the shape \(\d, 2"):
            kernel_orthogonality(weight, **settings)
    with pytest.raises(ValueError, match="groups=2 must be"):
        kernel_orthogonality(torch.zeros(3, 2, 3), stride=(1,), groups=2)
