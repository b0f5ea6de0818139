"""Averages and merges whose start and interval are counted in epochs."""

import lightning as L
import pytest
import torch
from averaging_nets import Net, equal, fit, flat, loader
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.callbacks import AverageWeights, BEMACallback, EMACallback, MergeCheckpoints, WSMCallback
from lightning_objectives.merging import WSM

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")

RUNS = {
    "plain": ({}, 4),
    "accumulated": ({"accumulate_grad_batches": 3}, 2),
    "limited": ({"limit_train_batches": 3}, 3),
    "fractional": ({"limit_train_batches": 0.5, "accumulate_grad_batches": 2}, 1),
    "without a length": ({"data": "iterable"}, 4),
}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(list(loader()))


def run(*callbacks, data=None, epochs=5, **settings):
    data = torch.utils.data.DataLoader(Stream(), batch_size=None) if data else None
    return fit(*callbacks, data=data, epochs=epochs, val=True, **settings)


def merged(callback):
    return dict(torch.load(callback.path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("rule", [EMA(decay=0.5), SWA(), BEMA(), [EMA(warmup=True), BEMA()]], ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_epochs_are_as_many_steps(name, rule):
    settings, per_epoch = RUNS[name]
    for epochs, steps in (
        ({"start_epoch": 1, "every_n_epochs": 2}, {"start_step": per_epoch, "every_n_steps": 2 * per_epoch}),
        ({"start_epoch": 2}, {"start_step": 2 * per_epoch}),
        ({"every_n_epochs": 1}, {"every_n_steps": per_epoch}),
        ({"start_step": per_epoch, "every_n_epochs": 1}, {"start_step": per_epoch, "every_n_steps": per_epoch}),
    ):
        mine, other = AverageWeights(rule, **epochs), AverageWeights(rule, **steps)
        one, _ = run(mine, **settings)
        two, _ = run(other, **settings)
        assert mine._averages.updates == other._averages.updates > 0
        assert mine._averages.start == other._averages.start
        assert equal(one, two)
        assert equal(one.seen, two.seen), "each validation saw the same weights"


@pytest.mark.parametrize("keep", ["files", "sum"])
@pytest.mark.parametrize("name", RUNS)
def test_snapshots_in_epochs_are_those_in_steps(name, keep, tmp_path):
    settings, per_epoch = RUNS[name]
    if keep == "sum" and settings.get("data"):
        with pytest.raises(ValueError, match=r"keep='sum' must know beforehand at which step an epoch ends"):
            run(MergeCheckpoints(WSM(), keep="sum", every_n_epochs=1, directory=tmp_path), max_steps=9, **settings)
        return
    for epochs, steps in (
        ({"start_epoch": 2, "every_n_epochs": 1}, {"start_step": 2 * per_epoch, "every_n_steps": per_epoch}),
        ({"every_n_epochs": 2}, {"every_n_steps": 2 * per_epoch}),
        ({"start_epoch": 3, "every_n_steps": 1}, {"start_step": 3 * per_epoch, "every_n_steps": 1}),
    ):
        mine, other = (MergeCheckpoints(WSM(), last=3, keep=keep, directory=tmp_path, **s) for s in (epochs, steps))
        run(mine, other, **settings)
        assert mine._window.steps == other._window.steps != []
        assert equal(merged(mine), merged(other))


class ByHand(Net):
    """Takes no step where ``rests`` says so, or leaves an epoch there."""

    automatic_optimization = False

    def __init__(self, rests, leaves):
        super().__init__()
        self.rests, self.leaves = rests, leaves

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.leaves and self.rests(self.current_epoch, batch_idx) else None

    def training_step(self, batch, batch_idx):
        if not self.rests(self.current_epoch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()


@pytest.mark.parametrize("leaves", [True, False])
def test_an_epoch_whose_last_batch_has_no_step_counts(leaves):
    net = ByHand(lambda epoch, batch: batch >= 2, leaves)
    averages = AverageWeights(SWA(), every_n_epochs=1)
    merge = MergeCheckpoints(WSM(), last=3, every_n_epochs=1)
    weights = []
    net.on_train_epoch_end = lambda: weights.append(flat(net))
    fit(averages, merge, net=net, epochs=3)
    assert averages._averages.updates == 3
    torch.testing.assert_close(flat(net).double(), torch.stack(weights).double().mean(0), rtol=0, atol=1e-6)
    assert merge._window.steps == [2, 4, 6]


@pytest.mark.parametrize("leaves", [True, False])
def test_an_epoch_without_a_step_changes_nothing(leaves):
    averages = AverageWeights(EMA(decay=0.5), every_n_epochs=1)
    merge = MergeCheckpoints(WSM(), last=3, every_n_epochs=1)
    fit(averages, merge, net=ByHand(lambda epoch, batch: epoch in (0, 2), leaves), epochs=4)
    assert averages._averages.updates == 2
    assert merge._window.steps == [4, 8]
    assert all(rates for rates in merge._window.rates)


@pytest.mark.parametrize("ends", ["max_steps", "should_stop"])
def test_an_epoch_that_the_training_ends_early_does_not_count(ends):
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.should_stop or (ends == "should_stop" and trainer.global_step == 6)

    averages = AverageWeights(SWA(), every_n_epochs=1)
    merge = MergeCheckpoints(WSM(), every_n_epochs=1)
    _, runner = fit(averages, merge, Stops(), max_steps=6 if ends == "max_steps" else -1)
    assert (runner.global_step, averages._averages.updates, merge._window.steps) == (6, 1, [4])


class Saves(L.Callback):
    """Saves around each step, before or after the average acts."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_start(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"start{trainer.current_epoch}.pt")

    def on_train_batch_start(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"before{trainer.global_step}.pt")

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")
        trainer.save_checkpoint(self.folder / f"weights{trainer.global_step}.pt", weights_only=True)

    def on_train_epoch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_going_on_anywhere_is_going_on(tmp_path, first, every):
    def callbacks():
        averages = AverageWeights([EMA(decay=0.5), BEMA()], start_epoch=1, every_n_epochs=every)
        return [averages, MergeCheckpoints(WSM(), last=4, start_epoch=1, every_n_epochs=every)]

    # All batches are alike, because the loader begins anew where a training goes on.
    data = torch.utils.data.DataLoader([next(iter(loader()))] * 4, batch_size=None)
    (averages, merge), saves = callbacks(), Saves(tmp_path)
    whole, _ = fit(*([saves, averages, merge] if first else [averages, merge, saves]), data=data, epochs=4)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 16 + 4
    counted = [torch.load(tmp_path / f"before{step}.pt")["callbacks"] for step in range(16)]
    epochs = [next(s for k, s in states.items() if k.startswith("AverageW"))["epochs"]["now"] for states in counted]
    assert epochs == [step // 4 for step in range(16)], "the last batch of an epoch is not trained when it starts"
    for file in files:
        if (alone := tmp_path / f"weights{file.stem}.pt").exists():
            assert equal(dict(torch.load(alone)["state_dict"]), dict(torch.load(file)["state_dict"]))
        mine = callbacks()
        resumed, _ = fit(*mine, data=data, epochs=4, ckpt_path=file)
        assert equal(resumed, whole), file
        assert equal(mine[0].weights("bema"), averages.weights("bema")), file
        assert mine[1]._window.steps == merge._window.steps, file
        assert equal(merged(mine[1]), merged(merge)), file


def test_a_training_that_joins_later_counts_the_epochs_before(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_top_k=-1)
    fit(saver, epochs=2)
    for start, begin in ((1, 8), (2, 8), (3, 12)):
        averages = AverageWeights(SWA(), start_epoch=start)
        fit(averages, epochs=5, ckpt_path=saver.best_model_path)
        assert averages._averages.start == begin


@pytest.mark.parametrize(
    "make",
    [
        lambda **s: AverageWeights(SWA(), **s),
        EMACallback,
        BEMACallback,
        lambda **s: MergeCheckpoints(WSM(), **s),
        WSMCallback,
    ],
)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_epoch": 1, "start_step": 0}, "start_step=0 and start_epoch=1 say the same in two units"),
        ({"every_n_epochs": 1, "every_n_steps": 500}, "every_n_steps=500 and every_n_epochs=1 say the same"),
        ({"start_epoch": -1}, "start_epoch=-1 must be >= 0"),
        ({"every_n_epochs": 0}, "every_n_epochs=0 must be >= 1"),
    ],
)
def test_settings_that_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_the_state_key_names_the_unit_that_was_chosen():
    assert "'start_step': 0, 'every_n_epochs': 2," in AverageWeights(SWA(), every_n_epochs=2).state_key
    assert "'start_epoch': 2, 'every_n_steps': 1," in AverageWeights(SWA(), start_epoch=2).state_key
    assert "'every_n_epochs': 2, 'start_step': 0," in MergeCheckpoints(WSM(), every_n_epochs=2).state_key


def test_an_average_that_never_began_says_in_epochs():
    with pytest.warns(UserWarning, match="8 optimizer steps were taken, with start_epoch=3 and every_n_steps=1, so"):
        fit(AverageWeights(SWA(), start_epoch=3))
