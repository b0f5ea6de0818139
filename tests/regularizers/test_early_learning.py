import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit
from torch.utils.data import DataLoader

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.data import with_index
from lightning_objectives.regularizers import (
    EarlyLearningRegularization,
    early_learning_penalty,
    early_learning_targets,
)


class ByHand(Net):
    """A table of targets, as the authors' loop keeps it."""

    def __init__(self, momentum, strength):
        super().__init__()
        self.momentum, self.strength, self.table = momentum, strength, torch.zeros(24, 3)

    def training_step(self, batch, batch_idx):
        (x, y), index = batch
        logits = self(x)
        p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        for row, i in enumerate(index.tolist()):
            q = p[row].detach()
            self.table[i] = self.momentum * self.table[i] + (1 - self.momentum) * q / q.sum()
        term = torch.stack([torch.log(1 - (self.table[i] * p[row]).sum()) for row, i in enumerate(index.tolist())])
        return F.cross_entropy(logits, y) + self.strength * term.mean()


def indexed():
    return DataLoader(with_index(data()), batch_size=8, shuffle=True)


def test_it_is_the_authors_loop():
    callback = AddRegularizer(EarlyLearningRegularization(momentum=0.6), strength=0.4)
    ours, _ = fit(callback, train=indexed(), max_epochs=4)
    by_hand, _ = fit(net=lambda: ByHand(0.6, 0.4), train=indexed(), max_epochs=4)
    torch.testing.assert_close(ours.state_dict(), by_hand.state_dict())
    torch.testing.assert_close(callback.state_dict()["memory.targets"], by_hand.table)


def test_by_hand():
    """p = (0.8, 0.2): t = 0.5 (0.4, 0.6) + 0.5 p = (0.6, 0.4), and log(1 - 0.48 - 0.08) = log 0.44."""
    logits, targets = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]])
    new = early_learning_targets(logits, targets, momentum=0.5)
    torch.testing.assert_close(new, torch.tensor([[0.6, 0.4]]))
    torch.testing.assert_close(early_learning_penalty(logits, new), torch.tensor([-0.820981]), rtol=1e-5, atol=0)


def test_without_targets_it_is_the_plain_run():
    callback = AddRegularizer(EarlyLearningRegularization(momentum=1.0))
    assert equal(fit(callback, train=indexed())[0], fit(train=indexed(), net=Plain)[0])


class Plain(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0], batch_idx)


def test_descending_it_brings_the_prediction_to_the_target():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    (slope,) = torch.autograd.grad(early_learning_penalty(logits, targets).sum(), logits)
    moved = logits - 0.1 * slope
    assert ((moved.softmax(1) - logits.softmax(1)) * targets).sum(1).min() > 0


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_bad_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match=rf"momentum={momentum} must lie in \[0, 1\]"):
        EarlyLearningRegularization(momentum=momentum)
    with pytest.raises(ValueError, match="momentum"):
        early_learning_targets(torch.zeros(1, 2), torch.zeros(1, 2), momentum=momentum)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="targets"):
        early_learning_penalty(torch.zeros(2, 3), torch.zeros(1, 3))
