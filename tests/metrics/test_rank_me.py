import math

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_objectives.metrics import RankMe, rank_me


def by_numbers(singular_values):
    total = sum(singular_values)
    p = [value / total + 1e-7 for value in singular_values]
    return math.exp(-sum(share * math.log(share) for share in p))


def streamed(*batches):
    metric = RankMe()
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def test_by_hand():
    """Z'Z = [[2, 1], [1, 5]] has the eigenvalues (7 ± √13) / 2."""
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    expected = by_numbers([math.sqrt((7 + sign * math.sqrt(13)) / 2) for sign in (1, -1)])
    assert expected == pytest.approx(1.923558, abs=1e-6)
    assert rank_me(z).item() == pytest.approx(expected, rel=1e-6)
    assert streamed(z[:2], z[2:]).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("rows", "features"), [(40, 7), (5, 9), (1, 4), (300, 1)])
def test_the_sum_of_products_gives_what_the_singular_values_give(rows, features):
    """With fewer rows than features too, where the paper has as many values as rows."""
    z = torch.randn(rows, features) + 1
    assert streamed(*z.split(3)).item() == pytest.approx(rank_me(z).item(), rel=1e-5)
    assert rank_me(z).item() == pytest.approx(by_numbers(torch.linalg.svdvals(z.double()).tolist()), rel=1e-6)


def test_equal_directions_count_one_each_and_a_collapse_is_one():
    assert rank_me(torch.eye(6).repeat(3, 1)).item() == pytest.approx(6, abs=1e-4)
    collapsed = torch.randn(50, 1) @ torch.randn(1, 8)
    assert streamed(collapsed).item() == pytest.approx(1, abs=1e-3)
    assert 31 < streamed(torch.randn(2000, 32)).item() < 32
    assert streamed(torch.randn(2000, 32) + 100).item() < 4  # the features are not centred


def test_half_precision_and_casts_keep_the_sums_wide():
    z = torch.randn(60, 5)
    assert RankMe().half()._sum("products").dtype == torch.float64
    assert streamed(z.bfloat16()).item() == pytest.approx(rank_me(z.bfloat16().double()).item(), rel=1e-6)


@pytest.mark.parametrize("z", [torch.zeros(0, 3), torch.zeros(4, 3), torch.full((2, 3), math.inf)])
@pytest.mark.parametrize("value", [rank_me, streamed])
def test_what_has_no_rank_is_nan(z, value):
    assert value(z).isnan()


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 3, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="features of the shape"):
        RankMe().update(torch.zeros(shape))


def test_other_features_are_refused():
    metric = RankMe()
    metric.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 4\) have 4 columns, but those before had 3"):
        metric.update(torch.zeros(2, 4))
    metric.reset()
    metric.update(torch.zeros(2, 4))


def test_two_in_a_collection_stay_apart():
    metrics = MetricCollection({"a": RankMe(), "b": RankMe()})
    metrics.update(features=torch.eye(3))
    assert set(metrics.compute()) == {"a", "b"}
