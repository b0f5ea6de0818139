import math

import pytest
import torch

from lightning_objectives.metrics import StableRank, rank_me, stable_rank


def streamed(*batches):
    metric = StableRank()
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def test_by_hand():
    """Z'Z = [[2, 1], [1, 5]] has the trace 7 and the greatest eigenvalue (7 + √13) / 2."""
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    expected = 14 / (7 + math.sqrt(13))
    assert stable_rank(z).item() == pytest.approx(expected, rel=1e-6)
    assert streamed(z[:2], z[2:]).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("rows", "features"), [(40, 7), (5, 9), (1, 4), (300, 1)])
def test_power_iterations_give_the_same(rows, features):
    z = torch.randn(rows, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    v = torch.ones(features, dtype=torch.float64)
    for _ in range(300):
        v = z.T @ (z @ v)
        v /= v.norm()
    expected = (z.square().sum() / (z @ v).square().sum()).item()
    assert stable_rank(z).item() == pytest.approx(expected, rel=1e-5)
    assert streamed(*z.split(3)).item() == pytest.approx(expected, rel=1e-5)


def test_a_convolution_is_reshaped_and_weak_directions_hardly_count():
    weight = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert stable_rank(weight) == stable_rank(weight.reshape(6, 12))
    weak = torch.diag(torch.tensor([1.0] + [0.1] * 50))
    assert stable_rank(weak).item() == pytest.approx(1.5, abs=1e-5)
    assert rank_me(weak).item() > 20
    assert stable_rank(torch.eye(6)).item() == pytest.approx(6)
    assert stable_rank(1e-30 * torch.eye(6)).item() == pytest.approx(6)


@pytest.mark.parametrize("z", [torch.zeros(0, 3), torch.zeros(4, 3), torch.full((2, 3), math.inf)])
@pytest.mark.parametrize("value", [stable_rank, streamed])
def test_what_has_no_rank_is_nan(z, value):
    assert value(z).isnan()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"features of the shape \(3,\)"):
        stable_rank(torch.zeros(3))
    metric = StableRank()
    for shape in ((3,), (2, 3, 4)):
        with pytest.raises(ValueError, match="features of the shape"):
            metric.update(torch.zeros(shape))
    metric.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 4\) have 4 columns, but those before had 3"):
        metric.update(torch.zeros(2, 4))


def test_half_precision_keeps_the_sums_wide():
    z = torch.randn(60, 5).bfloat16()
    assert StableRank().half()._sum("products").dtype == torch.float64
    assert streamed(z).item() == pytest.approx(stable_rank(z.double()).item(), rel=1e-6)
