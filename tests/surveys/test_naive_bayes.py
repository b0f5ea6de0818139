import math

import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives import survey_data
from lightning_objectives.surveys import NaiveBayesHead, naive_bayes_sums, naive_bayes_weights


def head_of(features, target, classes=3, **settings):
    survey = NaiveBayesHead(**settings)
    result = survey.result(survey(features, torch.zeros(len(features), classes), target), rows=len(features))
    return result["weight"], result["bias"]


def drawn(rows=40, classes=3, features=4):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (rows,), generator=generator)
    shift = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    return shift[target] + torch.randn(rows, features, generator=generator, dtype=torch.float64), target


def test_by_hand():
    """Means 1 and 3, variance 1, shares 2/3 and 1/3 of the features 0, 1, 2, 1 (class 0) and 2, 4 (class 1)."""
    features, target = torch.tensor([[0.0], [2.0], [0.0], [2.0], [2.0], [4.0]]), torch.tensor([0, 0, 0, 0, 1, 1])
    weight, bias = head_of(features, target, classes=2, eps=1e-12)
    torch.testing.assert_close(weight, torch.tensor([[1.0], [3.0]], dtype=torch.float64))
    expected = torch.tensor([math.log(2 / 3) - 0.5, math.log(1 / 3) - 4.5], dtype=torch.float64)
    torch.testing.assert_close(bias, expected)


def test_the_logits_are_the_densities_of_gaussians():
    """By torch.distributions, with the variance pooled over the classes: the softmax is that of Bayes' rule."""
    features, target = drawn()
    weight, bias = head_of(features, target)
    means = torch.stack([features[target == k].mean(0) for k in range(3)])
    variance = sum((target == k).sum() * features[target == k].var(0, unbiased=False) for k in range(3)) / 40
    gaussians = torch.distributions.Normal(means, (variance + 1e-9).sqrt())
    prior = torch.bincount(target).double() / 40
    joint = gaussians.log_prob(features[:, None]).sum(2) + prior.log()
    torch.testing.assert_close((features @ weight.T + bias).softmax(1), joint.softmax(1))


def test_scikit_learn_is_the_peer():
    """With its variances pooled over the classes, as the authors' code pools them."""
    features, target = drawn()
    peer = GaussianNB(var_smoothing=0.0).fit(features.numpy(), target.numpy())
    peer.var_[:] = peer.class_prior_ @ peer.var_ + 1e-9
    weight, bias = head_of(features, target)
    found = (features @ weight.T + bias).log_softmax(1)
    torch.testing.assert_close(found, torch.from_numpy(peer.predict_log_proba(features.numpy())))


def test_it_finds_the_best_boundary_of_simulated_gaussians():
    """Two classes with the means -1 and 1 and the variance 4: the weights differ by 2 / 4, the boundary is at 0."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(20000) % 2
    features = (2.0 * target - 1)[:, None] + 2 * torch.randn(20000, 1, generator=generator)
    weight, bias = head_of(features, target, classes=2)
    assert weight[1] - weight[0] == pytest.approx(0.5, abs=0.02)
    assert bias[1] - bias[0] == pytest.approx(0.0, abs=0.02)


def test_one_hot_probabilities_are_classes_and_others_are_shares():
    features, target = drawn()
    one_hot = nn.functional.one_hot(target, 3).double()
    torch.testing.assert_close(head_of(features, one_hot), head_of(features, target))
    twice = head_of(features.repeat_interleave(2, 0), torch.tensor([0, 1]).repeat(40), classes=2)
    torch.testing.assert_close(head_of(features, torch.full((40, 2), 0.5), classes=2), twice)


def test_features_far_from_zero_keep_their_variance():
    features, target = drawn()
    weight, bias = head_of(features + 1e4, target)
    near = head_of(features, target)
    torch.testing.assert_close(
        ((features + 1e4) @ weight.T + bias).softmax(1),
        (features @ near[0].T + near[1]).softmax(1),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_constant_feature_says_nothing_and_an_absent_class_is_never_predicted():
    features, target = drawn(classes=2)
    constant = torch.cat([features, torch.full((40, 1), 0.1, dtype=torch.float64)], 1)
    weight, bias = head_of(constant, target, eps=1e-3)
    plain = head_of(features, target, eps=1e-3)
    torch.testing.assert_close((constant @ weight.T + bias).softmax(1), (features @ plain[0].T + plain[1]).softmax(1))
    assert weight.isfinite().all()
    assert bias[2] == -math.inf
    assert (constant @ weight.T + bias).argmax(1).max() < 2


def test_over_a_loader_into_a_head():
    features, target = drawn()
    network = nn.Sequential(nn.Identity(), nn.Linear(4, 3))
    loader = DataLoader(TensorDataset(features.float(), target), batch_size=7)
    network[1].load_state_dict(survey_data(NaiveBayesHead(), network, loader))
    weight, bias = head_of(features.float(), target)
    torch.testing.assert_close(network(features.float()), (features.float().double() @ weight.T + bias).float())


def test_refusals():
    with pytest.raises(ValueError, match=r"eps=0\.0 must be > 0"):
        NaiveBayesHead(eps=0.0)
    with pytest.raises(ValueError, match="one class"):
        naive_bayes_sums(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"counts.*\(2,\)"):
        naive_bayes_weights(torch.zeros(3, 4), torch.zeros(2), torch.zeros(4))
    with pytest.raises(ValueError, match=r"eps=nan must be > 0"):
        naive_bayes_weights(torch.zeros(3, 4), torch.ones(3), torch.zeros(4), eps=math.nan)
