import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit
from torch import nn

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import CentreLoss

FEATURES, TARGET = torch.tensor([[1.0, 2.0], [3.0, 0.0], [2.0, 2.0]]), torch.tensor([0, 0, 1])
CENTRES = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])


def with_centres(centres=CENTRES, **settings):
    method = CentreLoss(**settings)
    method.build(features=centres.shape[1], classes=len(centres))
    method.centres.weight.data = centres.clone()
    return method


def test_by_hand():
    """Half of 1 + 4, of 9 and of 1 + 1: the sum 8."""
    terms = with_centres()(FEATURES, TARGET)
    torch.testing.assert_close(terms, torch.tensor([2.5, 4.5, 1.0]))


def test_a_centre_that_is_the_mean_is_where_the_gradient_ends():
    """The gradient of a centre is the sum of c - f over its class; absent classes are not moved."""
    method = with_centres(centre_rate=1.0)
    method(FEATURES, TARGET).sum().backward()
    torch.testing.assert_close(method.centres.weight.grad, torch.tensor([[-4.0, -2.0], [-1.0, -1.0], [0.0, 0.0]]))
    method = with_centres(torch.tensor([[2.0, 1.0], [2.0, 2.0], [5.0, 5.0]]))
    method(FEATURES, TARGET).sum().backward()
    assert method.centres.weight.grad.abs().max() == 0


def test_the_rate_scales_the_gradient_of_the_centres_alone():
    found = {}
    for rate in (1.0, 50.0):
        method, features = with_centres(centre_rate=rate), FEATURES.clone().requires_grad_()
        value = method(features, TARGET)
        value.sum().backward()
        found[rate] = value.detach(), features.grad, method.centres.weight.grad
    torch.testing.assert_close(found[50.0][:2], found[1.0][:2])
    torch.testing.assert_close(found[50.0][2], 50 * found[1.0][2])


def test_probabilities_give_the_expectation():
    method, mixed = with_centres(), torch.tensor([[0.2, 0.5, 0.3]])
    expected = sum(p * method(FEATURES[:1], torch.tensor([k])) for k, p in enumerate(mixed[0]))
    torch.testing.assert_close(method(FEATURES[:1], mixed), expected)
    sure = F.one_hot(TARGET, 3).float()
    torch.testing.assert_close(method(FEATURES, sure), method(FEATURES, TARGET))


def test_features_on_their_centre_have_a_finite_slope():
    method, features = with_centres(), CENTRES.clone().requires_grad_()
    method(features, torch.eye(3)).sum().backward()
    assert features.grad.abs().max() == 0
    assert method.centres.weight.grad.isfinite().all()


def test_it_is_the_step_by_hand():
    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))

    class Begun(CentreLoss):
        def build(self, *, features, classes):
            super().build(features=features, classes=classes)
            self.centres.weight.data = start.clone()

    class ByHand(Net):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(start.clone())

        def training_step(self, batch, batch_idx):
            features = self.backbone(batch[0])
            far = (features - self.centres[batch[1]]).square().sum(1).mean() / 2
            return F.cross_entropy(self.fc(features), batch[1]) + 0.1 * far

    method = Begun(centre_rate=1.0)
    net, _ = fit(AddRegularizer(method, strength=0.1), net=Net)
    by_hand, _ = fit(net=ByHand)
    expected = by_hand.state_dict()
    torch.testing.assert_close(method.centres.weight.detach(), expected.pop("centres"))
    torch.testing.assert_close(dict(net.state_dict()), dict(expected))


@pytest.mark.parametrize("ignored", [-100, 255])
def test_a_target_to_ignore_leaves_the_other_terms(ignored):
    terms = with_centres()(FEATURES, torch.tensor([0, ignored, 1]))
    torch.testing.assert_close(terms[::2], torch.tensor([2.5, 1.0]))


class Binary(Net):
    def __init__(self):
        super().__init__(classes=1)

    def training_step(self, batch, batch_idx):
        hit = (batch[1] == 0).float()[:, None]
        return F.binary_cross_entropy_with_logits(self(batch[0]), hit)


def test_one_logit_has_two_centres():
    method = CentreLoss(centre_rate=1.0)
    fit(AddRegularizer(method, strength=1.0), net=Binary)
    assert method.centres.weight.shape == (2, 6)


def test_refusals():
    with pytest.raises(ValueError, match=r"centre_rate=0\.0 must be > 0"):
        CentreLoss(centre_rate=0.0)
    with pytest.raises(ValueError, match=r"features of the shape \(3, 2\) .* must fit the centres \(3, 4\)"):
        with_centres(torch.zeros(3, 4))(FEATURES, TARGET)
    with pytest.raises(ValueError, match=r"target of the shape \(3, 4\) must fit the centres"):
        with_centres()(FEATURES, torch.full((3, 4), 0.25))
