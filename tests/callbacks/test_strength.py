"""The strength of a term: yours, else that of the method's paper, else 1."""

import pytest
import torch
from helpers import Net, equal, fit, loader, trainer

from lightning_objectives.callbacks import AddRegularizer, Distill
from lightning_objectives.distillation import VanillaKD
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
    assert AddRegularizer(method).strength_setting == factor
    assert AddRegularizer(method, strength=3.0).strength_setting == 3.0
    assert AddRegularizer(method, strength=0.0).strength_setting == 0.0


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


class Steps(Net):
    """Adds the penalty by hand, with a factor for each optimizer step."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        factor = self.factors[self.global_step]
        loss = torch.nn.functional.cross_entropy(logits, y)
        return loss + factor * log_partition_penalty(logits).mean() if factor else loss


TIMES = {
    "a schedule": ({"strength": lambda done: 1 - done}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    "a schedule that begins at 0": ({"strength": lambda done: float(done > 0.4)}, [0, 0, 0, 1, 1, 1]),
    "from a step": ({"strength": 1.0, "start_step": 2}, [0, 0, 1, 1, 1, 1]),
    "from an epoch": ({"strength": 1.0, "start_epoch": 1}, [0, 0, 0, 1, 1, 1]),
    "to a step": ({"strength": 1.0, "stop_step": 2}, [1, 1, 0, 0, 0, 0]),
    "to an epoch": ({"strength": 1.0, "stop_epoch": 1}, [1, 1, 1, 0, 0, 0]),
    "between": ({"strength": 1.0, "start_step": 1, "stop_epoch": 1}, [0, 1, 1, 0, 0, 0]),
    "warmed up": ({"strength": 2.0, "warmup_steps": 4}, [0.5, 1, 1.5, 2, 2, 2]),
    "warmed up from a step": ({"strength": 1.0, "start_step": 3, "warmup_steps": 2}, [0, 0, 0, 0.5, 1, 1]),
}


@pytest.mark.parametrize("name", sorted(TIMES))
def test_each_step_has_its_factor(name):
    settings, factors = TIMES[name]
    ours, _ = fit(AddRegularizer(log_partition_penalty, **settings))
    assert equal(ours, fit(net=lambda: Steps(factors))[0])


@pytest.mark.parametrize("name", ["between", "warmed up"])
def test_a_resumed_training_has_the_factors_of_its_steps(name, tmp_path):
    settings, factors = TIMES[name]
    _, runner = fit(AddRegularizer(log_partition_penalty, **settings), max_epochs=1)
    runner.save_checkpoint(tmp_path / "one.ckpt")
    net, runner = Net(), trainer(AddRegularizer(log_partition_penalty, **settings))
    runner.fit(net, loader(), ckpt_path=tmp_path / "one.ckpt")
    assert equal(net, fit(net=lambda: Steps(factors))[0])


def test_accumulated_batches_share_the_factor_of_their_step():
    settings = {"accumulate_grad_batches": 3}
    ours, _ = fit(AddRegularizer(log_partition_penalty, strength=1.0, stop_step=1), **settings)
    assert equal(ours, fit(net=lambda: Steps([1, 0]), **settings)[0])


def test_a_teacher_is_asked_only_when_it_is_due():
    asked = []

    class Teacher(Net):
        def forward(self, x):
            asked.append(1)
            return super().forward(x)

    fit(Distill(VanillaKD(), teacher=Teacher(), weight=lambda done: 0.5, start_step=2, stop_step=3))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_step": -1}, "start_step=-1 must be >= 0"),
        ({"start_step": 1, "start_epoch": 2}, "start_step=1 and start_epoch=2 say the same in two units"),
        ({"stop_step": 1, "stop_epoch": 2}, "stop_step=1 and stop_epoch=2 say the same in two units"),
        ({"start_step": 3, "stop_step": 3}, "stop_step=3 must be above start_step=3"),
        ({"stop_epoch": 0}, "stop_epoch=0 must be above start_epoch=0"),
        ({"start_epoch": 1, "warmup_steps": 2}, "warmup_steps=2 counts from a step.*start_epoch=1"),
    ],
)
def test_times_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AddRegularizer(log_partition_penalty, **settings)
    with pytest.raises(ValueError, match=message):
        Distill(VanillaKD(), teacher=Net(), **settings)


def test_a_factor_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"gives nan at 0\.0"):
        fit(AddRegularizer(log_partition_penalty, strength=lambda done: float("nan")))


def test_a_schedule_of_a_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match="length of the training is unknown"):
        fit(AddRegularizer(log_partition_penalty, strength=lambda done: 1.0), max_epochs=-1)
