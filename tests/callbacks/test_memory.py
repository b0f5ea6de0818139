"""What a method remembers of each sample: written by index, saved, resumed, begun anew."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit, trainer
from torch.utils.data import DataLoader, Subset

from lightning_objectives._step.memory import Memory, first_of_equals
from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import (
    AddRegularizer,
    Distill,
    PerturbWeights,
    ReplaceLoss,
    ReweightSamples,
    TransformBatch,
)
from lightning_objectives.data import with_index
from lightning_objectives.kinds import Distillation, Loss, Regularizer, Row, Weighting
from lightning_objectives.perturbations import SAM
from lightning_objectives.regularizers import EarlyLearningRegularization
from lightning_objectives.weighting import FeasibleLearning


class LastLosses(Weighting):
    """Weights of one; remembers the last loss of each sample, and how often it has come."""

    remembers = {"loss": Row((), -1.0), "count": Row((1,), 0.0)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, losses, index, memory):
        self.seen.append((index.clone(), {name: rows.clone() for name, rows in memory.items()}, losses.clone()))
        return torch.ones_like(losses)

    def learn(self, losses, memory):
        return {"loss": losses, "count": memory["count"] + 1}


class Unpacking(Net):
    """Takes the item alone, as with a callback that removes the index."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch.item, batch_idx)


def indexed(shuffle=True, **kwargs):
    return DataLoader(with_index(data(**kwargs)), batch_size=8, shuffle=shuffle)


def test_each_sample_finds_what_it_has_left():
    method = LastLosses()
    callback = ReweightSamples(method)
    net, _ = fit(callback, train=indexed(), max_epochs=3)
    last, count = torch.full((24,), -1.0), torch.zeros(24, 1)
    for index, memory, losses in method.seen:
        assert torch.equal(memory["loss"], last[index])
        assert torch.equal(memory["count"], count[index])
        last[index], count[index] = losses, count[index] + 1
    assert torch.equal(callback.state_dict()["memory.loss"], last)
    assert count.eq(3).all()
    assert equal(net, fit(net=Unpacking, train=indexed(), max_epochs=3)[0])


def test_a_second_fit_begins_anew():
    method = LastLosses()
    callback = ReweightSamples(method)
    fit(callback, train=indexed(), max_epochs=1)
    method.seen.clear()
    fit(callback, train=indexed(), max_epochs=1)
    assert all(memory["count"].eq(0).all() for _, memory, _ in method.seen)


@pytest.mark.parametrize("cls", [EarlyLearningRegularization, FeasibleLearning], ids=lambda cls: cls.__name__)
def test_a_resumed_training_goes_on(cls, tmp_path):
    def callback():
        if cls is FeasibleLearning:
            return ReweightSamples(FeasibleLearning(tolerance=0.3))
        return AddRegularizer(EarlyLearningRegularization(), strength=0.5)

    whole, _ = fit(callback(), train=indexed(shuffle=False), max_epochs=3)
    _, runner = fit(callback(), train=indexed(shuffle=False), max_epochs=1)
    runner.save_checkpoint(tmp_path / "one.ckpt")
    torch.load(tmp_path / "one.ckpt", weights_only=True)
    resumed = Net()
    trainer(callback(), max_epochs=3).fit(resumed, indexed(shuffle=False), ckpt_path=tmp_path / "one.ckpt")
    assert equal(whole, resumed)
    with pytest.raises(ValueError, match=r"shape \(24(, 3)?,?\).*needs \(16(, 3)?,?\).*another data set"):
        trainer(callback(), max_epochs=3).fit(Net(), indexed(n=16), ckpt_path=tmp_path / "one.ckpt")


def test_saved_before_the_first_step_it_keeps_what_was_loaded(tmp_path):
    callback = ReweightSamples(LastLosses())
    fit(callback, train=indexed(), max_epochs=1)
    other = ReweightSamples(LastLosses())
    other.load_state_dict(callback.state_dict())
    assert other.state_dict().keys() == callback.state_dict().keys()


def test_a_part_of_the_data_set_has_the_numbers_of_the_whole():
    method = LastLosses()
    callback = ReweightSamples(method)
    part = Subset(with_index(data()), range(8, 24))
    fit(callback, train=DataLoader(part, batch_size=8), max_epochs=1)
    assert callback.state_dict()["memory.count"].flatten().tolist() == [0.0] * 8 + [1.0] * 16


class Counted(Net):
    """Answers the index itself."""

    def objective_index(self, batch):
        return batch[1]


def test_the_number_of_samples_is_told_where_it_does_not_show():
    with pytest.raises(ValueError, match=r"TensorDataset, does not show how many samples.*Say samples="):
        fit(ReweightSamples(LastLosses()), net=Counted)
    with pytest.raises(ValueError, match=r"index of a sample is 2, but LastLosses\(\) remembers 2 samples"):
        fit(ReweightSamples(LastLosses(), samples=2), net=Counted)
    fit(ReweightSamples(LastLosses(), samples=3), net=Counted)


class Nearest(Weighting):
    """Weights of one; remembers random numbers, and sees those of all samples."""

    remembers = {"loss": Row((2,), 3.0, spread=0.5), "other": Row((2,), 3.0, spread=0.5)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, losses, index, memory, memory_bank):
        assert all(torch.equal(memory[name], rows[index]) for name, rows in memory_bank.items())
        self.seen.append({name: rows.clone() for name, rows in memory_bank.items()})
        return torch.ones_like(losses)

    def learn(self, losses, memory):
        return {"loss": memory["loss"] + 10, "other": memory["other"]}


def test_rows_may_begin_with_random_numbers_which_the_bank_shows():
    method, other = Nearest(), Nearest()
    net, _ = fit(ReweightSamples(method), train=indexed(), max_epochs=1)
    fit(ReweightSamples(other, seed=1), train=indexed(), max_epochs=1)
    first, last = method.seen[0], method.seen[-1]
    numbers = torch.cat([first["loss"], first["other"], *other.seen[0].values()])
    assert len(numbers.unique()) == numbers.numel()  # Each row, name and seed has its own.
    assert 2.5 <= numbers.min() < 2.6
    assert 3.4 < numbers.max() <= 3.5
    assert torch.equal(last["other"], first["other"])
    assert (last["loss"] > 10).all(1).sum() == 16
    torch.manual_seed(3)
    again = Nearest()
    callback = ReweightSamples(again)
    same, _ = fit(callback, train=indexed(), max_epochs=1, seed=0)
    assert equal(net, same)
    assert all(torch.equal(rows, first[name]) for name, rows in again.seen[0].items())
    assert (callback.state_dict()["memory.loss"] > 10).all()


class LossOfTheBank(Loss):
    """The products of the logits with all that it remembers."""

    remembers = {"logits": Row(("C",), spread=0.1)}  # noqa: RUF012

    def forward(self, logits, target, memory_bank):
        return (logits @ memory_bank["logits"].T).square().mean(1)

    def learn(self, logits, memory):
        return {"logits": logits.sign() / 5}


class TermOfTheBank(Regularizer):
    """The same, as a term."""

    remembers = LossOfTheBank.remembers
    learn = LossOfTheBank.learn

    def forward(self, logits, memory_bank):
        return (logits @ memory_bank["logits"].T).square().mean(1)


@pytest.mark.parametrize("callback", [lambda: ReplaceLoss(LossOfTheBank()), lambda: AddRegularizer(TermOfTheBank())])
def test_a_backward_pass_through_the_bank_meets_the_rows_as_they_were(callback):
    """What is learned in a step is written after its backward pass, which may need the bank."""
    made = callback()
    fit(made, train=indexed(), max_epochs=2)
    assert made.state_dict()["memory.logits"].abs().eq(0.2).all()


def test_of_a_sample_that_comes_twice_the_first_row_is_written():
    memory = Memory(LastLosses(), 4, classes=None, device=torch.device("cpu"), saved={})
    index = torch.tensor([2, 0, 2, 2])
    memory.write(index, {"loss": torch.tensor([1.0, 2.0, 3.0, 4.0]), "count": torch.ones(4, 1)})
    assert memory.rows["loss"].tolist() == [2.0, -1.0, 1.0, -1.0]
    assert first_of_equals(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_both_passes_of_a_step_find_the_same_and_one_is_written():
    method = LastLosses()
    callback = ReweightSamples(method)
    fit(callback, PerturbWeights(SAM()), train=indexed(), max_epochs=2)
    assert callback.state_dict()["memory.count"].eq(2).all()
    pairs = list(zip(method.seen[::2], method.seen[1::2], strict=True))
    assert all(torch.equal(a[1]["loss"], b[1]["loss"]) for a, b in pairs)
    assert any(not torch.equal(a[2], b[2]) for a, b in pairs)


def test_accumulated_batches_learn_one_by_one():
    callback = ReweightSamples(LastLosses())
    fit(callback, train=indexed(), max_epochs=2, accumulate_grad_batches=3)
    assert callback.state_dict()["memory.count"].eq(2).all()


def test_it_is_told_how_much_it_takes(caplog):
    memory = Memory(EarlyLearningRegularization(), 10, classes=3, device=torch.device("cpu"), saved={})
    assert memory.rows["targets"].shape == (10, 3)
    assert memory.rows["targets"].nbytes == 120


def test_ten_million_numbers_take_forty_megabytes():
    memory = Memory(FeasibleLearning(tolerance=0.5), 10**7, classes=None, device=torch.device("meta"), saved={})
    assert sum(rows.nbytes for rows in memory.rows.values()) == 40 * 10**6


class Wrong(LastLosses):
    def learn(self, losses, memory):
        return {"loss": losses[:, None], "count": memory["count"]}


class Missing(LastLosses):
    def learn(self, losses):
        return {"loss": losses}


class Replacing(Loss):
    """Learns from what a replaced loss cannot have: the losses of the criterion that it replaces."""

    remembers = LastLosses.remembers

    def forward(self, logits, target):
        return F.cross_entropy(logits, target, reduction="none")

    def learn(self, losses):
        return {"loss": losses, "count": losses[:, None]}


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda: [ReplaceLoss(Replacing())], "asks for the signal 'losses' before the step has called its criterion"),
        (lambda: [ReweightSamples(LastLosses()), TransformBatch(Mixup())], "TransformBatch.*mixes samples"),
        (lambda: [ReweightSamples(Missing())], r"learn returned \['loss'\], but it remembers \['count', 'loss'\]"),
        (lambda: [ReweightSamples(Wrong())], r"returned 'loss' of the shape \(8, 1\) for 8 samples.*\(8,\)"),
    ],
    ids=["a loss", "mixed", "names", "shapes"],
)
def test_what_cannot_be_remembered_is_refused(callbacks, message):
    with pytest.raises(ValueError, match=message):
        fit(*callbacks(), train=indexed())


def test_a_method_that_learns_nothing_is_refused_when_it_is_defined():
    with pytest.raises(TypeError, match=r"remembers \['loss'\], but defines no learn"):

        class Forgets(Weighting):
            remembers = {"loss": Row()}  # noqa: RUF012

            def forward(self, losses): ...

    with pytest.raises(TypeError, match=r"Typo\.learn asks for 'loses', which is no signal"):

        class Typo(Weighting):
            remembers = {"loss": Row()}  # noqa: RUF012

            def forward(self, losses): ...
            def learn(self, loses): ...


class Drift(Distillation):
    """Remembers the student's logits."""

    remembers = {"logits": Row(("C",))}  # noqa: RUF012

    def forward(self, logits, teacher_logits, memory):
        return (logits - teacher_logits).square().sum(1) + 0 * memory["logits"].sum(1)

    def learn(self, logits):
        return {"logits": logits}


class Mean(Regularizer):
    remembers = {"logits": Row(("C",))}  # noqa: RUF012

    def forward(self, logits, memory):
        return (logits - memory["logits"]).square().sum(1)

    def learn(self, logits):
        return {"logits": logits}


@pytest.mark.parametrize("make", [lambda: AddRegularizer(Mean()), lambda: Distill(Drift(), teacher=Net())])
def test_terms_remember_too(make):
    callback = make()
    fit(callback, train=indexed(), max_epochs=1)
    rows = callback.state_dict()["memory.logits"]
    assert rows.shape == (24, 3)
    assert rows.abs().sum(1).min() > 0
