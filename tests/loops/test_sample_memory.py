"""The memory of a method in a loop of one's own is that of the callbacks."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit
from torch.utils.data import DataLoader

import lightning_objectives as lo
from lightning_objectives.data import with_index


def indexed():
    return DataLoader(with_index(data()), batch_size=8, shuffle=True)


class ByHand(Net):
    """Computes the term in its own step."""

    def __init__(self):
        super().__init__()
        self.method = lo.EarlyLearningRegularization(momentum=0.6)
        self.memory = lo.SampleMemory(self.method, samples=24, classes=3)

    def training_step(self, batch, batch_idx):
        (x, y), index = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y) + 0.5 * self.method(logits, self.memory.of(index)).mean()
        self.memory.learn(index, logits=logits)
        return loss


def test_it_is_the_callbacks_to_the_bit():
    callback = lo.AddRegularizer(lo.EarlyLearningRegularization(momentum=0.6), strength=0.5)
    ours, _ = fit(callback, train=indexed(), max_epochs=3)
    loop, _ = fit(net=ByHand, train=indexed(), max_epochs=3)
    assert all(torch.equal(loop.state_dict()[name], value) for name, value in ours.state_dict().items())
    assert torch.equal(loop.memory.state_dict()["targets"], callback.state_dict()["memory.targets"])


def test_it_goes_on_from_a_state():
    first, second = (lo.SampleMemory(lo.FeasibleLearning(tolerance=0.1), samples=3) for _ in range(2))
    first.learn(torch.tensor([2, 0]), losses=torch.tensor([1.0, 0.5]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.of(torch.arange(3))["multipliers"], second.of(torch.arange(3))["multipliers"])


def test_the_bank_is_the_rows_of_all_samples():
    memory, other, third = (lo.SampleMemory(lo.CRD(), samples=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(memory.bank["student"], other.bank["student"])
    assert not torch.equal(memory.bank["student"], third.bank["student"])
    torch.testing.assert_close(memory.bank["teacher"][[3, 1]], memory.of(torch.tensor([3, 1]))["teacher"])


def test_what_does_not_fit_is_refused():
    memory = lo.SampleMemory(lo.FeasibleLearning(tolerance=0.1), samples=3)
    before = memory.of(torch.arange(3))["multipliers"]
    with pytest.raises(TypeError, match=r"learn asks for \['losses'\], but got \['logits'\]"):
        memory.learn(torch.tensor([0]), logits=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"holds \['targets'\], but FeasibleLearning.* remembers \['multipliers'\]"):
        memory.load_state_dict({"targets": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"shape \(4,\), but this training needs \(3,\)"):
        memory.load_state_dict({"multipliers": torch.zeros(4)})
    assert torch.equal(memory.of(torch.arange(3))["multipliers"], before)
    with pytest.raises(ValueError, match="remembers nothing of samples"):
        lo.SampleMemory(lo.LossBasedReweighting(), samples=3)
    with pytest.raises(ValueError, match="a number for each class"):
        lo.SampleMemory(lo.EarlyLearningRegularization(), samples=3)
