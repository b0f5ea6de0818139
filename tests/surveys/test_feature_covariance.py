import pytest
import torch

from lightning_objectives.surveys import ClassMeans, FeatureCovariance, feature_moments


def measured(features, batch=7, **settings):
    survey = FeatureCovariance(**settings)
    parts = [survey(rows) for rows in features.split(batch)]
    return survey.result({name: sum(part[name] for part in parts) for name in parts[0]}, rows=len(features))


def test_by_hand():
    """Means 2 and 5; differences (-1, -3), (-1, 3), (2, 0): 6/3, (3 - 3 + 0)/3, 18/3."""
    result = measured(torch.tensor([[1.0, 2.0], [1.0, 8.0], [4.0, 5.0]]))
    torch.testing.assert_close(result["mean"], torch.tensor([2.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(result["covariance"], torch.tensor([[2.0, 0.0], [0.0, 6.0]], dtype=torch.float64))


@pytest.mark.parametrize("correction", [0, 1])
def test_by_torch(correction):
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) @ torch.ones(5, 5).triu() + 3
    result = measured(features, correction=correction)
    torch.testing.assert_close(result["mean"], features.double().mean(0))
    torch.testing.assert_close(result["covariance"], features.double().T.cov(correction=correction))
    assert result["covariance"].equal(result["covariance"].T)


@pytest.mark.parametrize(("mean", "rtol"), [(1e2, 1e-10), (1e4, 1e-6), (1e6, 1e-2)])
def test_a_large_mean_costs_as_many_digits_as_the_docstring_says(mean, rtol):
    features = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + mean
    expected = features.T.cov(correction=0)
    torch.testing.assert_close(measured(features)["covariance"].diagonal(), expected.diagonal(), rtol=rtol, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e3 + 0.1, -1e8 / 3])
def test_a_constant_feature_and_one_that_is_lost_in_rounding_are_0(value):
    varied = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.stack([torch.full_like(varied, value), varied, 1e9 + varied], 1)
    covariance = measured(features)["covariance"]
    assert covariance[1, 1] > 0.9
    assert covariance.count_nonzero() == 1


def test_too_few_samples_have_no_covariance():
    one = torch.tensor([[0.1, 0.7]])
    assert measured(one)["covariance"].equal(torch.zeros(2, 2, dtype=torch.float64))
    assert measured(one, correction=1)["covariance"].isnan().all()
    assert measured(one, correction=1)["mean"].equal(one[0].double())
    survey = FeatureCovariance()
    none = survey.result(survey(one[:0]), rows=0)
    assert none["mean"].isnan().all()
    assert none["covariance"].isnan().all()


def test_what_is_not_finite_shows():
    covariance = measured(torch.tensor([[1.0, 2.0], [float("inf"), 3.0], [2.0, 4.0]]))["covariance"]
    assert covariance[0].isnan().all()
    torch.testing.assert_close(covariance[1, 1].item(), 2 / 3)


def test_without_the_spread_of_the_means_it_is_that_of_lee_et_al():
    features = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(30) % 4
    features = features + target[:, None]
    centered = torch.cat([features[target == c] - features[target == c].mean(0) for c in range(4)])
    survey = ClassMeans()
    classes = survey.result(survey(features, torch.zeros(30, 4), target), rows=30)
    of_means = classes["means"].T.cov(correction=0, fweights=classes["counts"].long())
    result = measured(features)["covariance"]
    torch.testing.assert_close(result - of_means, centered.T @ centered / 30)


def test_features_in_half_precision_are_added_in_float64():
    features = torch.full((4, 1), 300.0, dtype=torch.float16)
    assert feature_moments(features)["products"].item() == 360000.0


@pytest.mark.parametrize("correction", [-1, 2, 0.5])
def test_another_divisor_is_refused(correction):
    with pytest.raises(ValueError, match=rf"correction={correction} must be 0 or 1"):
        FeatureCovariance(correction=correction)
