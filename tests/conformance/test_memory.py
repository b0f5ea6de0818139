"""What is remembered is what a new training gives, and what cannot be compared is not remembered."""

import dataclasses

import pytest
import torch
from torch import nn

from lightning_objectives.testing.conformance import Case, Memory, Trial, conditions, exemplars, outcome
from lightning_objectives.testing.conformance.memory import Unknown, identity
from lightning_objectives.testing.conformance.resume import difference

CHOSEN = (
    "accumulation a_compiled_part buffers_of_all_types label_smoothing lbfgs lr_finder_callback max_time random_draws "
    "resumed_at_an_epochs_end unknown_length val_check_interval"
).split()


class Doubting(Memory):
    """Trains again all the same, and compares."""

    hits = 0

    def once(self, function, *arguments, key=None):
        trained = []

        def train(*arguments):
            trained.append(None)
            return function(*arguments)

        result = super().once(train, *arguments, key=(function, *arguments) if key is None else key)
        if not trained:
            self.hits += 1
            assert difference(parts(result), parts(function(*arguments))) == ""
        return result


def parts(result):
    return vars(result) if dataclasses.is_dataclass(result) else result


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_remembered_is_a_new_training_to_the_bit(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    condition = next(condition for condition in conditions() if condition.name == name)
    rows = {str(row): row for row in exemplars()}
    memory = Doubting()
    for row in ("AverageWeights", "ReweightSamples"):
        outcome(condition, Trial(rows[row], Case(), memory))
    assert memory.hits


def test_nobody_can_change_what_is_remembered():
    trial = Trial(exemplars()[0])
    first = trial.plain(max_epochs=1)
    losses = list(first.losses)
    first.losses.clear()
    for value in first.weights.values():
        value.zero_()
    again = trial.plain(max_epochs=1)
    assert len(trial.memory) == 1
    assert again.losses == losses
    assert any(value.any() for value in again.weights.values())


@pytest.mark.parametrize(
    "settings", [{"max_epochs": 1}, {"seed": 1}, {"precision": "64-true"}, {"val": []}, {"limit_train_batches": 2}]
)
def test_each_setting_counts(settings):
    trial = Trial(exemplars()[0])
    assert difference(trial.plain().weights, trial.plain(**settings).weights) or "val" in settings
    assert len(trial.memory) == 2


def test_rows_and_cases_do_not_share_what_depends_on_them():
    memory = Memory()
    for row in exemplars()[:2]:
        for case in (Case(), Case(batch_size=11)):
            Trial(row, case, memory).usual(max_epochs=1)
            Trial(row, case, memory).plain(max_epochs=1)
    assert len(memory) == 4 + 2


def closure(value):
    return lambda: value


def made(value):
    class Local(nn.Module):
        attribute = value

        def __init__(self):
            super().__init__()

    return Local


@pytest.mark.parametrize("make", [closure, made])
@pytest.mark.parametrize(
    ("one", "other"), [(1, 2), (1, 1.0), (0.0, -0.0), ([1], [2]), (torch.zeros(1), torch.ones(1)), (closure, made)]
)
def test_what_is_captured_tells_functions_and_classes_apart(make, one, other):
    assert identity(make(one)) == identity(make(one))
    assert identity(make(one)) != identity(make(other))


@pytest.mark.parametrize("value", [nn.Linear(1, 1), object(), torch.Generator(), [object()]])
def test_what_cannot_be_compared_is_not_remembered(value):
    with pytest.raises(Unknown):
        identity(closure(value))
    memory, calls = Memory(), []
    for _ in range(2):
        memory.once(lambda: calls.append(None), key=(value,))
    assert (len(memory), len(calls)) == (0, 2)


def test_what_changes_something_is_not_remembered():
    memory, calls = Memory(), []

    def act():
        calls.append(None)

    for _ in range(2):
        memory.once(act)
    assert (len(memory), len(calls)) == (0, 2)
