import pytest
import torch

from lightning_objectives.regularizers import IRMv2Penalty, irm_v2_penalty

GROUPS = torch.tensor([0, 1] * 15)


def excess_risk(features, logits, y):
    """What the best last layer of one environment gains, by least squares."""
    phi = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    best = phi @ torch.linalg.lstsq(phi, y).solution
    return (logits - y).square().sum(1).mean() - (best - y).square().sum(1).mean()


def drawn():
    generator = torch.Generator().manual_seed(0)
    features, y = (torch.randn(30, d, generator=generator, dtype=torch.float64) for d in (3, 2))
    return features, y, features @ torch.ones(3, 2, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_for_the_squared_loss_it_is_the_excess_risk_whatever_the_scale_of_the_features(scale):
    features, y, logits = drawn()
    expected = [excess_risk(features[e == GROUPS], logits[e == GROUPS], y[e == GROUPS]) for e in (0, 1)]
    settings = {"groups": 2, "criterion": "squared", "ridge": 1e-12}
    found = irm_v2_penalty(logits, scale * features, y, GROUPS, **settings)
    torch.testing.assert_close(found, sum(expected) / 2)


def test_for_cross_entropy_it_is_the_form_of_its_gradient():
    """By autograd through a last layer, and the inverse written out, for each environment."""
    features, _, logits = drawn()
    target, expected = torch.arange(30) % 2, []
    phi = torch.cat([features, torch.ones(30, 1, dtype=torch.float64)], 1)
    for e in (0, 1):
        rows, moved = phi[e == GROUPS], torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
        risk = torch.nn.functional.cross_entropy(logits[e == GROUPS] + rows @ moved, target[e == GROUPS])
        (g,) = torch.autograd.grad(risk, moved)
        inverse = (rows.T @ rows / len(rows) + 0.1 * torch.eye(4, dtype=torch.float64)).inverse()
        expected.append((g.T @ inverse @ g).trace() / 4)
    torch.testing.assert_close(irm_v2_penalty(logits, features, target, GROUPS, groups=2, ridge=0.1), sum(expected) / 2)


def test_the_best_layer_of_all_environments_has_no_penalty():
    features, _, _ = drawn()
    y = features @ torch.tensor([[1.0, 0], [2, -1], [0, 3]], dtype=torch.float64) + 0.3
    assert irm_v2_penalty(y, features, y, GROUPS, groups=2, criterion="squared") < 1e-20
    assert irm_v2_penalty(y + 0.1, features, y, GROUPS, groups=2, criterion="squared") > 1e-3


def test_an_environment_without_samples_counts_nothing():
    features, y, logits = drawn()
    arguments = logits, features, y, GROUPS
    two, five = (irm_v2_penalty(*arguments, groups=n, criterion="squared") for n in (2, 5))
    torch.testing.assert_close(two, five)


def test_few_samples_give_the_whole_risk():
    """With more features than samples every residual could be fitted."""
    features, y, logits = torch.randn(2, 9).double(), torch.randn(2, 1).double(), torch.randn(2, 1).double()
    found = irm_v2_penalty(logits, features, y, torch.zeros(2).long(), groups=1, criterion="squared", ridge=1e-10)
    torch.testing.assert_close(found, (logits - y).square().mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups=0 must be at least 1"),
        ({"groups": 2, "criterion": "hinge"}, "criterion='hinge' must be 'softmax' or 'squared'"),
        ({"groups": 2, "ridge": 0.0}, r"ridge=0\.0 must be > 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        IRMv2Penalty(**settings)
