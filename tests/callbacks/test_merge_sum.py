"""The merge as one running sum: equal to that of the files, or said to be none."""

import itertools
from pathlib import Path

import pytest
import torch
from averaging_nets import Net, NormNet, equal, fit, flat, loader
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from test_merge_checkpoints import Odd, Probe, Renamed, Wider, after, merged, slow
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_objectives._snapshots import running_sum
from lightning_objectives._snapshots.running_sum import RunningSum, planned_steps
from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import AverageWeights, MergeCheckpoints, WSMCallback
from lightning_objectives.kinds import Merge
from lightning_objectives.merging import WSM

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


def state(callback):
    return dict(torch.load(callback.path, weights_only=True)["state_dict"])


def both(make, **settings):
    """The merge of the files and that of the sum, of one run."""
    files, total = (MergeCheckpoints(**settings, keep=keep, directory=keep) for keep in ("files", "sum"))
    net, _ = fit(files, total, net=make())
    assert [path.name for path in Path("sum").iterdir()] == ["merged.ckpt"]
    return state(files), state(total), net


# The sum


def test_four_snapshots_by_hand(tmp_path):
    """The weights 0, 1, 10 and 100 times the shares .5000 .2071 .1589 .1340 of 1 - sqrt."""
    module = nn.Linear(1, 1, bias=False)
    total = RunningSum(tmp_path, module, WSM(), [1, 2, 3, 4], every_n_steps=1, after=0, writes=True)
    for step, value in enumerate((0.0, 1.0, 10.0, 100.0), 1):
        nn.init.constant_(module.weight, value)
        total.take(step, {})
    expected = 0.5**0.5 - 0.5 + 10 * (0.75**0.5 - 0.5**0.5) + 100 * (1 - 0.75**0.5)
    assert expected == pytest.approx(0.2071 + 1.589 + 13.40, abs=1e-2)
    assert total.merge()["weight"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", ["1-sqrt", "linear", "ema"])
def test_it_is_the_slow_merge_and_the_training_is_untouched(shape):
    reference, _ = fit()
    callback = MergeCheckpoints(WSM(shape=shape), last=3, every_n_steps=2, keep="sum")
    net, _ = fit(callback)
    assert equal(net.path, reference.path)
    assert equal(net, reference)
    files = MergeCheckpoints(WSM(shape=shape), last=3, every_n_steps=2)
    fit(files)
    torch.testing.assert_close(merged(callback, net), merged(files, net), rtol=0, atol=1e-6)
    if shape != "ema":
        expected = slow(after(reference), [4, 6, 8], shape)
        torch.testing.assert_close(merged(callback, net).double(), expected, rtol=0, atol=1e-6)
    assert not list(Path("merge").glob("step=*"))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"last": 8, "every_n_steps": 3, "start_step": 4}, [6]),
        ({"last": 2, "every_n_steps": 3}, [3, 6]),
        ({"last": 3, "every_n_steps": 1}, [6, 7, 8]),
    ],
)
def test_the_window_ends_with_the_last_multiple(settings, steps):
    callback = MergeCheckpoints(WSM(), keep="sum", **settings)
    net, _ = fit(callback)
    torch.testing.assert_close(merged(callback, net).double(), slow(after(net), steps), rtol=0, atol=1e-6)


def test_max_steps_and_accumulation_move_the_last_step():
    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=1, keep="sum")
    net, _ = fit(callback, accumulate_grad_batches=3, epochs=3)  # 3 batches, then the one that is left, an epoch
    path = [net.path[i] for i in (3, 4, 7, 8, 11)] + [flat(net)]
    torch.testing.assert_close(merged(callback, net).double(), slow(path, [5, 6]), rtol=0, atol=1e-6)
    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=2, keep="sum")
    net, _ = fit(callback, max_steps=7, epochs=5)
    torch.testing.assert_close(merged(callback, net).double(), slow(after(net), [4, 6]), rtol=0, atol=1e-6)


def test_all_kinds_of_tensors():
    """Tied, frozen, half, channels_last, integers, infinities; the bits of what did not change."""
    files, total, net = both(Odd, method=WSM(), last=3, every_n_steps=2)
    assert files.keys() == total.keys() == net.state_dict().keys()
    for name, value in files.items():
        assert total[name].dtype == value.dtype, name
        torch.testing.assert_close(total[name], value, rtol=0, atol=8e-3 if value.dtype == torch.bfloat16 else 1e-6)
    assert total["count"] == 8
    assert torch.equal(total["layers.0.weight"], total["layers.2.weight"])
    assert torch.equal(total["layers.0.bias"], net.layers[0].bias)
    assert torch.equal(total["mask"], net.mask)
    again = Odd.load_from_checkpoint("sum/merged.ckpt", map_location="cpu")
    assert again.hparams.width == 4


def test_half_precision_is_added_up_in_float32(tmp_path):
    """1 + 3 · 2^-8 has no bfloat16 between the parts of its sum."""
    module = nn.Linear(1, 1, bias=False).bfloat16()
    plan = list(range(1, 257))
    total = RunningSum(tmp_path, module, WSM(shape="linear"), plan, every_n_steps=1, after=0, writes=True)
    for step in plan:
        nn.init.constant_(module.weight, 1.0 + (step % 2) * 2.0**-6)
        total.take(step, {})
    assert total.state_dict()["means"]["weight"].dtype == torch.float32
    assert total.merge()["weight"].item() == 1 + 2.0**-7


def test_float64_stays_float64():
    def data():
        return loader(dtype=torch.float64)

    files, total = (MergeCheckpoints(WSM(), last=4, every_n_steps=2, keep=k, directory=k) for k in ("files", "sum"))
    fit(files, total, net=Net().double(), data=data())
    for name, value in state(files).items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(state(total)[name], value, rtol=0, atol=1e-14)


@pytest.mark.parametrize("buffers", ["average", "recalibrate"])
def test_batchnorm(buffers):
    files, total, _ = both(NormNet, method=WSM(), last=3, every_n_steps=2, buffers=buffers)
    for name, value in files.items():
        torch.testing.assert_close(total[name], value, rtol=0, atol=1e-6)


def test_beside_an_average_the_raw_weights_are_added():
    reference, _ = fit(val=True)
    callback, average = MergeCheckpoints(WSM(), last=3, every_n_steps=2, keep="sum"), AverageWeights(EMA(decay=0.5))
    for order in ([callback, average], [average, callback]):
        net, _ = fit(*order, val=True, val_check_interval=2)
        torch.testing.assert_close(merged(callback, net).double(), slow(after(reference), [4, 6, 8]), rtol=0, atol=1e-6)


def test_steps_that_a_scaler_skips_count():
    """The scale halves until the gradients are finite: the optimizer steps less often than the trainer says."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=2, growth_factor=2.0**18)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    taken = []

    def count(trainer, *_):
        trainer.optimizers[0].register_step_post_hook(lambda *_: taken.append(trainer.global_step))

    callback = MergeCheckpoints(WSM(), last=3, every_n_steps=2, keep="sum")
    net, runner = fit(callback, Probe(on_train_start=count), plugins=[plugin])
    assert runner.global_step == 8 > len(taken), "some were skipped"
    assert callback.path is not None, "and the last snapshot came all the same"
    torch.testing.assert_close(merged(callback, net).double(), slow(after(net), [4, 6, 8]), rtol=0, atol=1e-6)


def test_a_learning_rate_that_varied_warns():
    net = Net()

    def decays():
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if 2 <= step < 6 else 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    net.configure_optimizers = decays
    with pytest.warns(UserWarning, match=r"varied by more than 1 % between the snapshots \[4, 6, 8\]"):
        fit(MergeCheckpoints(WSM(), last=3, every_n_steps=2, keep="sum"), net=net)


# An end that comes too early or too late


def ends(step):
    def stop(trainer, *_):
        trainer.should_stop = trainer.global_step >= step

    return Probe(on_train_batch_end=stop)


def test_an_early_end_has_no_merge_and_says_so():
    callback = MergeCheckpoints(WSM(shape="cosine"), last=4, every_n_steps=2, keep="sum")
    told = r"\[2, 4, 6, 8\], but the training ended after 7 steps with those of \[2, 4, 6\] in the sum.*keep='files'"
    with pytest.warns(UserWarning, match=told):
        fit(callback, ends(7))
    assert callback.path is None
    assert not list(Path("merge").iterdir())
    with pytest.warns(UserWarning, match=r"ended after 3 steps with those of \[\] in the sum. No merge is written"):
        fit(MergeCheckpoints(WSM(shape="linear"), last=2, every_n_steps=2, keep="sum"), ends(3))


def test_early_stopping():
    callback = MergeCheckpoints(WSM(shape="cosine"), last=5, every_n_steps=4, keep="sum")
    stopping = EarlyStopping("val", patience=1, min_delta=1e6, check_on_train_epoch_end=False)
    with pytest.warns(UserWarning, match=r"\[4, 8, 12, 16, 20\], but the training ended after 8 steps"):
        fit(callback, stopping, val=True, epochs=5)
    assert callback.path is None


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        ("linear", [1 / 3, 1 / 3, 1 / 3]),
        ("ema", [0.64, 0.16, 0.2]),
        ("1-sqrt", [(1 / 3) ** 0.5, (2 / 3) ** 0.5 - (1 / 3) ** 0.5, 1 - (2 / 3) ** 0.5]),
        ("square", [1 / 9, 3 / 9, 5 / 9]),
    ],
)
def test_an_early_end_keeps_what_is_in_proportion(shape, shares):
    """The shares of three snapshots are in proportion to the first three of four: the decays are powers."""
    callback = MergeCheckpoints(WSM(shape=shape), last=4, every_n_steps=2, keep="sum")
    with pytest.warns(UserWarning, match=r"with those of \[2, 4, 6\] in the sum. The merge is of these"):
        net, _ = fit(callback, ends(7))
    expected = sum(share * after(net)[step - 1].double() for share, step in zip(shares, (2, 4, 6)))
    torch.testing.assert_close(merged(callback, net).double(), expected, rtol=0, atol=1e-6)


def test_a_training_that_is_longer_than_announced_says_so():
    """The mended limit comes too late for the window."""

    def prolong(trainer, *_):
        if trainer.global_step == 6:
            trainer.fit_loop.max_epochs = 4

    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=2, keep="sum")
    with pytest.warns(UserWarning, match=r"\[6, 8\], but the training ended after 16 steps"):
        net, _ = fit(callback, Probe(on_train_batch_end=prolong))
    torch.testing.assert_close(merged(callback, net).double(), slow(after(net), [6, 8]), rtol=0, atol=1e-6)


def test_an_exception_writes_nothing():
    def fail(trainer, *_):
        if trainer.global_step == 8:
            raise RuntimeError("stop")

    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=2, keep="sum")
    with pytest.raises(RuntimeError, match="stop"):
        fit(callback, Probe(on_train_batch_end=fail))
    assert callback.path is None
    assert not list(Path("merge").iterdir())
    fit(callback)
    assert callback.path.parent.name == "merge"


def test_a_window_that_never_comes_warns():
    with pytest.warns(UserWarning, match="no snapshot to merge: 8 optimizer steps"):
        fit(MergeCheckpoints(WSM(), every_n_steps=9, keep="sum"))


# Going on


def saver(folder, **when):
    return ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **when)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("at", ["epoch=0-step=4", "epoch=1-step=6", "epoch=1-step=7", "epoch=2-step=12"])
def test_resuming_is_the_uninterrupted_run_to_the_bit(tmp_path, at):
    def run(folder, *others, **kwargs):
        sums = MergeCheckpoints(WSM(), last=4, every_n_steps=2, keep="sum", directory=tmp_path / folder)
        x, y = loader(n=4).dataset.tensors
        same = TensorDataset(x.repeat(4, 1), y.repeat(4, 1))  # Lightning begins anew where it resumes within an epoch
        net, _ = fit(*others, sums, epochs=3, data=DataLoader(same, 4), **kwargs)
        return sums, net

    whole, net = run("whole", saver(tmp_path, every_n_train_steps=1))
    before = torch.load(tmp_path / f"{at}.ckpt", weights_only=True)["callbacks"][whole.state_key]
    there = [entry["step"] for entry in before["window"]["entries"]]
    assert there == [step for step in (6, 8, 10, 12) if step <= before["steps"]]
    again, resumed = run("again", net=Net(), ckpt_path=tmp_path / f"{at}.ckpt")
    assert equal(resumed, net)
    assert equal(state(again), state(whole))
    torch.testing.assert_close(merged(whole, net).double(), slow(after(net), [6, 8, 10, 12]), rtol=0, atol=1e-6)
    assert again.path == whole.path, "the folder of the checkpoint"


def test_a_checkpoint_of_a_callback_before_it_has_the_snapshot(tmp_path):
    """It saves at the end of the batch, before this one is asked."""

    def save(trainer, *_):
        if trainer.global_step == 6:
            trainer.save_checkpoint(tmp_path / "mid.ckpt")

    callbacks = [Probe(on_train_batch_end=save), MergeCheckpoints(WSM(), last=2, every_n_steps=2, keep="sum")]
    net, _ = fit(*callbacks)
    found = torch.load(tmp_path / "mid.ckpt", weights_only=True)["callbacks"][callbacks[1].state_key]
    assert [entry["step"] for entry in found["window"]["entries"]] == [6]
    torch.testing.assert_close(merged(callbacks[1], net).double(), slow(after(net), [6, 8]), rtol=0, atol=1e-6)


def test_a_prolonged_training_begins_its_own_window(tmp_path):
    """Two windows apart, and one into which the checkpoint falls: the merge is of what is still to come."""

    def run(epochs, **kwargs):
        callback = MergeCheckpoints(WSM(), last=3, every_n_steps=1, keep="sum", directory=tmp_path / "merge")
        return (callback, *fit(callback, saver(tmp_path), net=Net(), epochs=epochs, **kwargs))

    run(2)
    long, net, _ = run(4, ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    reference, _ = fit(epochs=4)
    assert long.path.parent.name == "merge-v1", "that of the shorter training stays as it is"
    torch.testing.assert_close(merged(long, net).double(), slow(after(reference), [14, 15, 16]), rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match=r"of \[7, 8, 9\], but it goes on from step 8 .* The merge is of \[9\] alone"):
        short, net, _ = run(3, max_steps=9, ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    assert torch.equal(merged(short, net), after(reference)[8])


def test_a_checkpoint_with_nothing_left_to_train_is_merged_again(tmp_path):
    def run(**kwargs):
        callback = MergeCheckpoints(WSM(), last=3, every_n_steps=2, keep="sum", directory=tmp_path / "merge")
        return callback, fit(callback, saver(tmp_path), net=Net(), **kwargs)[0]

    first, _ = run()
    expected = state(first)
    first.path.unlink()
    again, _ = run(ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    assert equal(state(again), expected)


class Double(Net):
    def on_load_checkpoint(self, checkpoint):
        self.double()
        checkpoint["optimizer_states"][0]["state"] = {}


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Renamed, r"\['body.0.bias', .*'layers.2.weight'\] came, went or were tied"),
        (Wider, r"layers.0.weight was torch.float32 \(3, 4\) in the sum, but is torch.float32 \(4, 4\)"),
        (Double, "layers.0.weight was torch.float32 .* but is torch.float64"),
    ],
)
def test_a_sum_of_another_network_is_refused_at_the_resume(tmp_path, net, message):
    """And not at the next snapshot, until which the training may go on for long."""
    settings = {"last": 2, "every_n_steps": 4, "keep": "sum", "directory": tmp_path / "merge"}
    fit(MergeCheckpoints(WSM(), **settings), saver(tmp_path), epochs=3)
    begun = []
    probe = Probe(on_train_batch_start=lambda *_: begun.append(1))
    with pytest.raises(ValueError, match=f"{message}.* Resume with the module as it was"):
        fit(MergeCheckpoints(WSM(), **settings), probe, net=net(), epochs=3, ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    assert not begun


def test_files_and_sum_do_not_take_each_others_state(tmp_path):
    fit(MergeCheckpoints(WSM(), last=3, every_n_steps=1), saver(tmp_path), epochs=1)
    with pytest.warns(UserWarning, match="holds snapshots of other settings"):
        fit(
            MergeCheckpoints(WSM(), last=3, every_n_steps=1, keep="sum"),
            ckpt_path=tmp_path / "epoch=0-step=4.ckpt",
            net=Net(),
        )


# What is refused


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.cycle(loader(batch_size=None).dataset)


def test_an_end_that_nobody_knows():
    sums = {"method": WSM(), "every_n_steps": 2, "last": 2, "keep": "sum"}
    for limits in ({"epochs": -1}, {"epochs": 1}):
        with pytest.raises(ValueError, match=r"must know the last step beforehand, but max_epochs=.*Set max_steps"):
            fit(MergeCheckpoints(**sums), data=DataLoader(Endless(), 4), **limits)
    callback = MergeCheckpoints(**sums)
    net, _ = fit(callback, data=DataLoader(Endless(), 4), max_steps=5, epochs=-1)
    torch.testing.assert_close(merged(callback, net).double(), slow(after(net), [2, 4]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"\[\{0: 1, 1: 2\}\] changes how many batches make a step.*keep='files'"):
        fit(MergeCheckpoints(**sums), GradientAccumulationScheduler({0: 1, 1: 2}))


def test_manual_optimization():
    net = Net()
    net.automatic_optimization = False
    with pytest.raises(ValueError, match=r"with manual optimization the module decides"):
        fit(MergeCheckpoints(WSM(), keep="sum"), net=net)


def test_settings():
    with pytest.raises(ValueError, match=r"keep='file' must be 'files' or 'sum'"):
        MergeCheckpoints(WSM(), keep="file")
    with pytest.raises(ValueError, match=r"keep='sum' has a window at the end alone"):
        WSMCallback(keep="sum", evaluate=True)


def test_negative_shares(tmp_path):
    class Extrapolation(Merge):
        def coefficients(self, steps):
            return torch.tensor([*[0.0] * (len(steps) - 2), -1.0, 2.0][-len(steps) :], dtype=torch.float64)

    with pytest.raises(ValueError, match=r"adds up shares >= 0, but .* gives \[0\.0, -1\.0, 2\.0\]"):
        fit(MergeCheckpoints(Extrapolation(), last=3, every_n_steps=1, keep="sum"))


class Newest(Merge):
    def coefficients(self, steps):
        return torch.eye(len(steps), dtype=torch.float64)[-1]


def test_as_long_as_the_shares_are_zero_the_sum_is_the_newest_snapshot(tmp_path):
    module = nn.Linear(1, 1, bias=False)
    total = RunningSum(tmp_path, module, Newest(), [1, 2, 3], every_n_steps=1, after=0, writes=True)
    for step, value in enumerate((5.0, 7.0, 11.0), 1):
        nn.init.constant_(module.weight, value)
        total.take(step, {})
        assert total.merge()["weight"].item() == value


def test_shares_that_are_zero_at_first(tmp_path):
    callback = MergeCheckpoints(Newest(), last=3, every_n_steps=2, keep="sum")
    net, _ = fit(callback)
    assert torch.equal(merged(callback, net), flat(net))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net, "weight", nn.Parameter(torch.ones(1, 2))), r"was torch.float32 \(2, 2\) in the sum"),
        (lambda net: net.double(), "but is torch.float64"),
        (lambda net: net.register_buffer("new", torch.zeros(1)), r"\['new'\] came, went or were tied"),
    ],
)
def test_a_network_that_changes(tmp_path, change, message):
    """A smaller tensor would be broadcast over the sum."""
    module = nn.Linear(2, 2)
    total = RunningSum(tmp_path, module, WSM(), [1, 2], every_n_steps=1, after=0, writes=True)
    total.take(1, {})
    change(module)
    with pytest.raises(ValueError, match=message):
        total.take(2, {})


def test_an_interruption_leaves_no_half_of_a_snapshot_in_the_sum(tmp_path, monkeypatch):
    module, mixed = nn.Linear(2, 2), running_sum._moved_mean
    total = RunningSum(tmp_path, module, WSM(), [1, 2, 3], every_n_steps=1, after=0, writes=True)
    total.take(1, {})
    nn.init.zeros_(module.weight)

    def interrupted(mean, value, rate, name):
        if name == "bias":
            raise KeyboardInterrupt
        return mixed(mean, value, rate, name)

    monkeypatch.setattr(running_sum, "_moved_mean", interrupted)
    with pytest.raises(KeyboardInterrupt):
        total.take(2, {})
    monkeypatch.undo()
    assert (total.state_dict()["entries"], total.state_dict()["means"]) == ([], {})
    total.take(3, {})
    with pytest.warns(UserWarning, match=r"with those of \[3\] in the sum"):
        assert total.has_merge_at(3)
    assert equal(total.merge(), dict(module.state_dict()))


def test_what_is_equal_in_all_snapshots_stays_so_to_the_bit(tmp_path):
    module = nn.Linear(9, 9)
    total = RunningSum(tmp_path, module, WSM(), list(range(1, 9)), every_n_steps=1, after=0, writes=True)
    for step in range(1, 9):
        nn.init.constant_(module.bias, step)
        total.take(step, {})
    assert torch.equal(total.merge()["weight"], module.weight)


def test_the_sum_shares_no_memory_with_the_module(tmp_path):
    module = nn.BatchNorm1d(2)
    total = RunningSum(tmp_path, module, WSM(), [1, 2], every_n_steps=1, after=0, writes=True)
    total.take(1, {})
    held = total.state_dict()["means"]
    assert held.keys() == module.state_dict().keys()
    assert all(held[name].data_ptr() != value.data_ptr() for name, value in module.state_dict().items())


def test_the_sum_changes_no_state_that_it_goes_on_from(tmp_path):
    module = nn.Linear(1, 1, bias=False)
    first, second = (
        RunningSum(tmp_path, module, WSM(shape="linear"), [1, 2], every_n_steps=1, after=0, writes=True)
        for _ in range(2)
    )
    nn.init.constant_(module.weight, 2.0)
    first.take(1, {})
    saved = first.state_dict()
    second.load_state_dict(saved)
    nn.init.constant_(module.weight, 4.0)
    second.take(2, {})
    assert second.merge()["weight"].item() == 3.0
    assert saved["means"]["weight"].item() == 2.0


@pytest.mark.parametrize(
    ("total", "settings", "steps"),
    [
        (10, (4, 2, 0), [4, 6, 8, 10]),
        (11, (2, 5, 0), [5, 10]),
        (10, (4, 3, 4), [6, 9]),
        (10, (4, 3, 3), [3, 6, 9]),
        (2, (4, 3, 0), []),
        (10, (1, 1, 11), []),
    ],
)
def test_the_plan(total, settings, steps):
    last, every, start = settings
    assert planned_steps(total, last=last, every_n_steps=every, start_step=start) == steps


def test_the_hooks_come_off():
    optimizers = []
    remember = Probe(on_train_start=lambda trainer, module: optimizers.extend(trainer.optimizers))
    fit(MergeCheckpoints(WSM(), every_n_steps=1, keep="sum"), remember)
    assert not [hook for hook in optimizers[0]._optimizer_step_post_hooks.values() if "OptimizerSteps" in repr(hook)]
