"""The strength of a term: yours, else that of the method's paper, else 1."""

import pytest
import torch
from helpers import Net, equal, fit

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.kinds import Regularizer
from lightning_objectives.regularizers import LogPartitionPenalty, SpectralDecoupling, log_partition_penalty


class Penalty(Regularizer):
    default_strength = 0.25

    def forward(self, logits):
        return logits.square()


class OwnSetting(Regularizer):
    """Its setting has another meaning than the callback's."""

    def __init__(self, *, strength: float = 0.1) -> None:
        super().__init__()
        self.strength = self.default_strength_of_mine = strength

    def forward(self, logits):
        return self.strength * logits.square()


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        (Penalty(), 0.25),
        (OwnSetting(), 1.0),
        (LogPartitionPenalty(), 1e-4),
        (SpectralDecoupling(), 1.0),
        (log_partition_penalty, 1.0),
        (torch.nn.Identity(), 1.0),
    ],
)
def test_the_default_is_the_methods_own(method, factor):
    assert AddRegularizer(method).factor == factor
    assert AddRegularizer(method, strength=3.0).factor == 3.0
    assert AddRegularizer(method, strength=0.0).factor == 0.0


def test_the_default_trains_as_the_same_strength_by_hand():
    ours, runner = fit(AddRegularizer(LogPartitionPenalty()))
    by_hand, other = fit(AddRegularizer(LogPartitionPenalty(), strength=1e-4))
    assert equal(ours, by_hand)
    assert not equal(ours, fit()[0])
    term = runner.callback_metrics["train/logpartitionpenalty"]
    assert term == other.callback_metrics["train/logpartitionpenalty"]
    assert term > 0.1, "what is logged is the term before its factor"


def test_a_method_whose_own_strength_is_zero_changes_nothing():
    class Nothing(Penalty):
        default_strength = 0.0

    callback = AddRegularizer(Nothing())
    assert not callback.active(0)
    assert equal(fit(callback)[0], fit(net=Net)[0])


def test_the_state_has_the_same_name_with_and_without_a_strength():
    keys = {AddRegularizer(LogPartitionPenalty(), strength=s).state_key for s in (None, 0.0, 1e-4, 1.0)}
    assert keys == {"AddRegularizer(LogPartitionPenalty())"}
