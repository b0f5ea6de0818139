import copy
import math

import pytest
import torch
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives.callbacks import Distill
from lightning_objectives.distillation import RKD, EnsembleTeacher, VanillaKD, vanilla_kd


class Says(nn.Module):
    """Returns what it was built with."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, scale=1.0):
        return self.output * scale if isinstance(self.output, torch.Tensor) else self.output


def test_by_hand():
    """The mean of (0.9, 0.1) and (0.5, 0.5), and their geometric mean, √0.45 : √0.05 = 3 : 1."""
    networks = [Says(torch.tensor([[0.9, 0.1]]).log()), Says(torch.tensor([[0.5, 0.5]]).log())]
    torch.testing.assert_close(EnsembleTeacher(networks)(None), torch.tensor([[0.7, 0.3]]).log())
    geometric = EnsembleTeacher(networks, average="logits")(None).softmax(1)
    torch.testing.assert_close(geometric, torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize(("shape", "class_dim"), [((6, 4), 1), ((2, 4, 3, 5), 1), ((2, 3, 4), -1)])
def test_a_distance_of_the_same_temperature_sees_the_mean_of_the_softened_probabilities(shape, class_dim):
    outputs = [3 * torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    teacher = EnsembleTeacher([Says(output) for output in outputs], temperature=2.5, class_dim=class_dim)
    expected = sum((output / 2.5).softmax(class_dim) for output in outputs) / 3
    torch.testing.assert_close((teacher(None) / 2.5).softmax(class_dim), expected)


def test_of_equal_networks_it_is_one_of_them():
    logits = torch.randn(5, 3)
    for average in ("probabilities", "logits"):
        teacher = EnsembleTeacher([Says(logits)] * 4, average=average, temperature=3.0)
        torch.testing.assert_close(teacher(None).log_softmax(1), logits.log_softmax(1))


def test_networks_that_are_sure_of_different_classes_stay_finite():
    sure = torch.tensor([[1e4, -1e4]])
    values = EnsembleTeacher([Says(sure), Says(-sure)])(None)
    torch.testing.assert_close(values, torch.full((1, 2), -math.log(2)))
    half = EnsembleTeacher([Says(sure.half()), Says(sure.half())])(None)
    assert half.dtype == torch.float16
    assert half.isfinite().all()


def test_it_is_called_as_one_network():
    teacher = EnsembleTeacher([Says(torch.ones(1, 2)), Says(3 * torch.ones(1, 2))], average="logits")
    assert teacher(None, scale=2.0).tolist() == [[4.0, 4.0]]


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3))


class ByHand(Net):
    """Computes the term in its own step, with both networks in evaluation mode."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        mean = sum((network(seed).eval()(x).detach() / 4).softmax(1) for seed in (1, 2)) / 2
        return self.criterion(logits, y) + vanilla_kd(logits, 4 * mean.log()).mean()


def test_a_training():
    networks = [network(1), network(2)]
    before = copy.deepcopy(networks[0].state_dict())
    callback = Distill(VanillaKD(), teacher=EnsembleTeacher(networks, temperature=4.0))
    net, _ = fit(callback)
    expected, _ = fit(net=ByHand)
    torch.testing.assert_close(dict(net.state_dict()), dict(expected.state_dict()))
    assert equal(networks[0], before)


def test_refusals():
    with pytest.raises(ValueError, match=r"networks=\[\] must hold one trained network or more"):
        EnsembleTeacher([])
    with pytest.raises(ValueError, match="average='votes' must be 'probabilities' or 'logits'"):
        EnsembleTeacher([Says(1)], average="votes")
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be > 0 and finite"):
        EnsembleTeacher([Says(1)], temperature=0.0)
    two = Says(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="Network 1 of the ensemble, Says, returns a tuple, but must return"):
        EnsembleTeacher([two, Says((1, 2))])(None)
    with pytest.raises(ValueError, match=r"logits of the shape \(2, 4\), and network 0 \(2, 3\)"):
        EnsembleTeacher([two, Says(torch.zeros(2, 4))])(None)
    for logits in (torch.zeros(2, 1), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"must hold two classes or more to have probabilities"):
            EnsembleTeacher([Says(logits)])(None)
        assert EnsembleTeacher([Says(logits)], average="logits")(None).shape == logits.shape
    with pytest.raises(ValueError, match="it may be one network of several"):
        fit(Distill(RKD(), teacher=EnsembleTeacher([network(1), network(2)])))
