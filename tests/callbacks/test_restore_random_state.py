import random

import helpers
import numpy as np
import pytest
import torch
from averaging_nets import Net, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_objectives._trainer.random import random_state, set_random_state
from lightning_objectives.callbacks.restore_random_state import RestoreRandomState

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each run has a folder of its own


class Noisy(Net):
    """Draws from every generator, in training and in validation."""

    def __init__(self):
        torch.manual_seed(7)
        super().__init__(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1), lr=0.01)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (1 + random.random() + np.random.rand() + random.gauss(0, 1) + np.random.randn())

    def validation_step(self, batch, batch_idx):
        random.random(), np.random.rand(), torch.rand(3)
        super().validation_step(batch, batch_idx)


def seed(number):
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def run(directory, *callbacks, ckpt_path=None, number=0, val=True, net=None, **saving):
    net = net or Noisy()
    seed(number)
    saver = ModelCheckpoint(directory, save_top_k=-1, filename="{epoch}", **saving)
    fit(saver, *callbacks, net=net, data=loader(shuffle=True), epochs=4, val=val, ckpt_path=ckpt_path)
    return net


SAVING = [{}, {"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}, {"monitor": "val"}]


@pytest.mark.parametrize(
    ("saving", "val"),
    [*((saving, True) for saving in SAVING), *((saving, False) for saving in SAVING[:2])],  # the others need validation
)
@pytest.mark.parametrize("at", [1, 3])
def test_resuming_at_an_epochs_end_is_the_uninterrupted_run(tmp_path, saving, val, at):
    whole = run(tmp_path / "a", RestoreRandomState(), val=val, **saving)
    resume = {"ckpt_path": tmp_path / "a" / f"epoch={at - 1}.ckpt", "number": 99, "val": val, **saving}
    resumed = run(tmp_path / "b", RestoreRandomState(), **resume)
    assert equal(resumed.path, whole.path[4 * at :])
    assert equal(resumed, whole)
    assert not equal(run(tmp_path / "c", **resume), whole)  # which plain Lightning does not do


def test_it_changes_nothing_in_a_run_that_is_not_resumed(tmp_path):
    assert equal(run(tmp_path / "a", RestoreRandomState()), run(tmp_path / "b"))


def test_its_state_is_read_safely(tmp_path):
    run(tmp_path, RestoreRandomState())
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert len(saved["callbacks"]["RestoreRandomState"]["ranks"]) == 1


def test_every_generator_is_put_back():
    seed(3)
    random.gauss(0, 1), np.random.randn()  # both now hold half of a pair
    state = random_state()
    draw = lambda: [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(1).item()]  # noqa: E731
    first = draw()
    seed(4)
    set_random_state(state)
    assert draw() == first


def test_another_number_of_processes_is_not_restored():
    callback, net = RestoreRandomState(), Net()
    runner = trainer(callback)
    callback.setup(runner, net, "fit")
    callback.load_state_dict({"ranks": [random_state(), random_state()]})
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="the random states of 2 processes, but this training has 1"):
        callback.on_train_start(runner, net)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # there is nothing to test on
def test_evaluation_restores_nothing(tmp_path):
    run(tmp_path, RestoreRandomState())
    seed(5)
    before = torch.get_rng_state()
    net = Net(nn.Linear(4, 8), nn.Identity(), nn.Linear(8, 1))
    seed(5)
    trainer(RestoreRandomState()).test(net, [], ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_saved_on_an_exception_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    callback = RestoreRandomState()
    callback.on_exception(trainer(), None, RuntimeError())
    assert len(callback.state_dict()["ranks"]) == 1


def test_keeping_the_states_moves_none_of_them(tmp_path):
    """The weights of an untouched run, with draws of shuffling and dropout, to the bit."""

    def run(name, *callbacks):
        saver = ModelCheckpoint(tmp_path / name, save_top_k=-1)
        net, _ = helpers.fit(
            *callbacks,
            saver,
            net=lambda: helpers.Net(dropout=0.5),
            train=helpers.loader(shuffle=True),
            enable_checkpointing=True,
        )
        return net, torch.load(saver.best_model_path, weights_only=True)

    plain, _ = run("plain")
    kept, file = run("kept", RestoreRandomState())
    assert any("RestoreRandomState" in key for key in file["callbacks"])  # it did run
    assert helpers.equal(plain, kept)
