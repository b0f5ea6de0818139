import copy
import math

import pytest
import torch
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives.callbacks import ReplaceLoss
from lightning_objectives.losses import FixedPredictorRejection


def with_scores(features=1, **settings):
    """A rejector whose score is the first feature."""
    method = FixedPredictorRejection(**settings)
    method.build(features=features)
    method.rejector.weight.data = torch.eye(1, features)
    method.rejector.bias.data.zero_()
    return method


LOGITS, TARGET = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1])


def test_by_hand():
    """c = 0.2, alpha = 1: beta = (e^0.5 + 4 e^-0.5) / 2 = 2.037422. Right at 0.3 and wrong at -0.5."""
    losses = with_scores(cost=0.2, alpha=1.0)(torch.tensor([[0.3], [-0.5]]), LOGITS, TARGET)
    beta = 2.037422
    by_hand = [math.exp(-0.35) + 0.2 * math.exp(-0.3 * beta), math.exp(0.25) + 0.2 * math.exp(0.5 * beta)]
    torch.testing.assert_close(losses, torch.tensor(by_hand), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cost", [0.05, 0.2, 0.7])
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_the_best_score_accepts_where_errors_are_rarer_than_the_cost(cost, alpha):
    """The least of the expected loss over a grid of scores is above 0 if, and only if, errors are rarer than c."""
    scores = torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None]
    method = with_scores(cost=cost, alpha=alpha).double()
    logits = LOGITS[:1].double().expand(len(scores), 3)
    for wrong in (cost - 0.02, cost, cost + 0.02):
        target = torch.tensor([1 - wrong, wrong, 0.0], dtype=torch.float64).expand(len(scores), 3)
        best = scores[method(scores, logits, target).argmin()].item()
        assert best == pytest.approx(0, abs=1e-9) if wrong == cost else (best > 0) == (wrong < cost)


def test_probabilities_give_the_expectation():
    method, features = with_scores(cost=0.2), torch.tensor([[0.4]])
    right, wrong = (method(features, LOGITS[:1], torch.tensor([k])) for k in (0, 2))
    mixed = method(features, LOGITS[:1], torch.tensor([[0.7, 0.1, 0.2]]))
    torch.testing.assert_close(mixed, 0.7 * right + 0.3 * wrong)


def test_other_types_of_numbers():
    """Half precision is computed in float32, and classes may have any integer type."""
    method, features = with_scores(cost=0.2), torch.tensor([[0.5], [-0.25]])
    expected = method(features, LOGITS, TARGET)
    torch.testing.assert_close(method(features.bfloat16(), LOGITS.bfloat16(), TARGET.to(torch.uint8)), expected)


def test_the_rejector_alone_gets_a_gradient():
    method = with_scores(cost=0.2)
    features, logits = torch.tensor([[0.4], [0.1]], requires_grad=True), LOGITS.clone().requires_grad_()
    method(features, logits, TARGET).sum().backward()
    assert features.grad is None
    assert logits.grad is None
    assert method.rejector.weight.grad.abs().max() > 0


@pytest.mark.parametrize("frozen", [False, True])
def test_in_a_training_the_rejector_learns_and_the_network_stays(frozen):
    """Also under weight decay, because a weight without a gradient does not decay."""
    start, callback = {}, ReplaceLoss(FixedPredictorRejection(cost=0.2))

    class Seen(Net):
        def __init__(self):
            super().__init__()
            self.backbone.requires_grad_(not frozen)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.5)

        def on_train_start(self):
            start.update({name: value.clone() for name, value in self.state_dict().items()})
            start["rejector"] = callback.loss.rejector.weight.detach().clone()

    net, _ = fit(callback, net=Seen)
    assert not torch.equal(callback.loss.rejector.weight, start.pop("rejector"))
    assert equal(net, start)


def test_the_training_is_that_of_the_rejector_alone():
    class Begun(FixedPredictorRejection):
        def build(self, *, features):
            super().build(features=features)
            self.rejector.load_state_dict(START.state_dict())

    class ByHand(Net):
        def __init__(self):
            super().__init__()
            self.rejector = copy.deepcopy(START)

        def training_step(self, batch, batch_idx):
            features = self.backbone(batch[0]).detach()
            score, right = self.rejector(features)[:, 0], self.fc(features).argmax(1) == batch[1]
            beta = (math.exp(0.5) + 4 * math.exp(-0.5)) / 2
            return ((score - torch.where(right, 1, -1)) / 2).exp().mean() + 0.2 * (-beta * score).exp().mean()

    callback = ReplaceLoss(Begun(cost=0.2, alpha=1.0))
    fit(callback, net=Net)
    by_hand, _ = fit(net=ByHand)
    torch.testing.assert_close(callback.loss.rejector.state_dict(), by_hand.rejector.state_dict())


START = nn.Linear(6, 1)


def test_refusals():
    for cost in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"cost={cost} must be in \(0, 1\)"):
            FixedPredictorRejection(cost=cost)
    with pytest.raises(ValueError, match=r"alpha=0\.0 must be > 0"):
        FixedPredictorRejection(cost=0.2, alpha=0.0)
    with pytest.raises(ValueError, match="have one class"):
        with_scores(cost=0.2)(torch.ones(2, 1), torch.ones(2, 1), torch.tensor([0, 0]))
