import copy
import operator
import pickle
import time
import warnings
from pathlib import Path

import helpers
import lightning as L
import pytest
import torch
from averaging_nets import Net, NormNet, equal, fit, flat, loader
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_objectives._snapshots import window
from lightning_objectives._snapshots.background import Background
from lightning_objectives._snapshots.rates import varying_rates
from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import (
    AverageWeights,
    LogMetrics,
    MergeCheckpoints,
    WSMCallback,
)
from lightning_objectives.merging import WSM, merge_checkpoints, wsm_coefficients

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


class Probe(L.Callback):
    def __init__(self, **hooks):
        for name, function in hooks.items():
            setattr(self, name, function)


def after(net):
    """The weights after each optimizer step of a plain run of this net."""
    return [*net.path[1:], flat(net)]


def merged(callback, net):
    """The weights in the merged checkpoint, in the order of the parameters."""
    state = torch.load(callback.path, weights_only=True)["state_dict"]
    return torch.cat([state[name].flatten() for name, _ in net.named_parameters()])


def slow(path, steps, shape="1-sqrt"):
    """In float64, from the newest back: theta_0 and the parts of the updates that are kept."""
    weights = [path[step - 1].double() for step in steps]
    n = len(steps)
    height = {"1-sqrt": lambda x: 1 - x**0.5, "linear": lambda x: 1 - x}[shape]
    return weights[0] + sum(height(i / n) * (weights[i] - weights[i - 1]) for i in range(1, n))


def files(folder):
    return sorted(int(path.stem.partition("=")[2]) for path in Path(folder).glob("step=*.safetensors"))


# The merge


@pytest.mark.parametrize("shape", ["1-sqrt", "linear"])
def test_the_merge_of_a_run_is_the_slow_one_and_the_training_is_untouched(tmp_path, shape):
    reference, _ = fit()
    callback = MergeCheckpoints(WSM(shape=shape), last=3, every_n_steps=2, directory=tmp_path / "here")
    net, _ = fit(callback)
    assert equal(net.path, reference.path)
    assert equal(net, reference)
    assert callback.path == tmp_path / "here" / "merged.ckpt"
    assert files(tmp_path / "here") == [4, 6, 8]
    expected = slow(after(reference), [4, 6, 8], shape)
    torch.testing.assert_close(merged(callback, net).double(), expected, rtol=0, atol=1e-6)
    for step in (4, 6, 8):
        again = Net()
        again.load_state_dict(load_file(tmp_path / "here" / f"step={step}.safetensors"))
        assert torch.equal(flat(again), after(reference)[step - 1])


def test_a_window_that_is_not_full_yet_and_a_start():
    callback = MergeCheckpoints(WSM(), last=8, every_n_steps=2, start_step=5)
    net, _ = fit(callback)
    torch.testing.assert_close(merged(callback, net).double(), slow(after(net), [6, 8]), rtol=0, atol=1e-6)
    assert files("merge") == [6, 8]


def test_one_snapshot_is_itself_and_none_warns():
    callback = MergeCheckpoints(WSM(), last=1, every_n_steps=3)
    net, _ = fit(callback)
    assert torch.equal(merged(callback, net), after(net)[5])
    late = MergeCheckpoints(WSM(), every_n_steps=1, start_step=9)
    with pytest.warns(UserWarning, match=r"no snapshot to merge: 8 optimizer steps were taken, with start_step=9"):
        untouched, _ = fit(late)
    assert equal(untouched, net)
    assert late.path is None
    assert not list(Path().glob("merge-v1/*"))


class Odd(Net):
    """Tied and frozen weights, half precision, channels_last, buffers of every kind."""

    def __init__(self, width=4):
        super().__init__(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 4), nn.Linear(4, 1))
        self.save_hyperparameters()
        self.layers[2].weight = self.layers[0].weight
        self.layers[0].bias.requires_grad_(False)
        self.conv = nn.Conv2d(2, 2, 2).to(memory_format=torch.channels_last).bfloat16()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def training_step(self, batch, batch_idx):
        self.count += 1
        self.level += 1.0
        self.hidden += 1.0
        return super().training_step(batch, batch_idx) + self.conv.weight.float().square().sum()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = "kept"


def test_tied_frozen_half_and_integer_tensors():
    callback = MergeCheckpoints(WSM(shape="linear"), last=2, every_n_steps=4)
    net, _ = fit(callback, net=Odd())
    checkpoint = torch.load(callback.path, weights_only=True)
    state = checkpoint["state_dict"]
    assert state.keys() == net.state_dict().keys()
    assert (state["count"], state["level"]) == (8, 6.0)
    assert torch.equal(state["layers.0.weight"], state["layers.2.weight"])
    assert not torch.equal(state["layers.0.weight"], net.layers[0].weight)
    assert torch.equal(state["layers.0.bias"], net.layers[0].bias)
    assert torch.equal(state["mask"], net.mask)
    assert state["conv.weight"].dtype == torch.bfloat16
    assert checkpoint["mine"] == "kept"
    again = Odd.load_from_checkpoint(callback.path, map_location="cpu")
    assert again.hparams.width == 4
    assert "hidden" not in load_file(callback.path.parent / "step=8.safetensors")
    by_command = merge_checkpoints(callback.path.parent.glob("step=*"), WSM(shape="linear"), "by_hand.pt")
    assert equal(dict(torch.load(by_command)), dict(state))


def test_steps_that_a_scaler_skips_do_not_count():
    scaler = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**120))
    with pytest.warns(UserWarning, match="no snapshot to merge: 0 optimizer steps"):
        fit(MergeCheckpoints(WSM(), every_n_steps=1), plugins=[scaler], epochs=1)


@pytest.mark.parametrize(("accumulate", "steps"), [(2, [1, 2]), (3, [1, 2])])
def test_accumulation(accumulate, steps):
    fit(MergeCheckpoints(WSM(), every_n_steps=1), accumulate_grad_batches=accumulate, epochs=1)
    assert files("merge") == steps


def test_layers_that_unfreeze_on_the_way():
    class Backboned(Net):
        def __init__(self):
            super().__init__()
            self.backbone = self.layers[0]

    callback = MergeCheckpoints(WSM(), last=3, every_n_steps=4)
    with pytest.warns(UserWarning, match="learning rate varied"):
        net, _ = fit(callback, BackboneFinetuning(1, verbose=False), net=Backboned(), epochs=3)
    assert files("merge") == [4, 8, 12]
    torch.testing.assert_close(merged(callback, net).double(), slow(after(net), [4, 8, 12]), rtol=0, atol=1e-6)


# Beside an average, and evaluated


def test_with_an_average_the_raw_weights_are_merged_and_each_has_its_own_place():
    reference, _ = fit(val=True)
    callback, averages = MergeCheckpoints(WSM(), last=3, every_n_steps=2), AverageWeights(EMA(decay=0.5))
    for order in ([callback, averages], [averages, callback]):
        net, _ = fit(*order, val=True, val_check_interval=2)
        torch.testing.assert_close(merged(callback, net).double(), slow(after(reference), [4, 6, 8]), rtol=0, atol=1e-6)
        assert equal(dict(net.named_parameters()), averages.weights("ema")), "the average is left in the module"
        assert torch.equal(torch.cat([w.flatten() for w in averages.weights("raw").values()]), flat(reference))


def test_the_merge_is_evaluated_under_its_own_name():
    seen = []

    def look(trainer, module):
        if not trainer.sanity_checking:
            seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.endswith("nll")})

    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=2, evaluate=True)
    probe = Probe(on_validation_end=look)
    average = AverageWeights(EMA(decay=0.5))
    log = LogMetrics(weights=["raw", "average"])
    net, _ = helpers.fit(log, callback, average, probe, net=helpers.Net, val=helpers.loader(), val_check_interval=1)
    assert callback.names == ("wsm",)
    assert ["val/wsm/nll" in keys for keys in seen] == [False, *[True] * 5], "from the first snapshot on"
    torch_nll = nn.functional.cross_entropy
    x, y = helpers.data().tensors
    again = helpers.Net()
    again.load_state_dict(torch.load(callback.path, weights_only=True)["state_dict"])
    assert seen[-1]["val/wsm/nll"] == pytest.approx(torch_nll(again(x), y).item(), abs=1e-5)
    assert len({round(v, 6) for k, v in seen[-1].items() if k != "val/nll"}) == 3
    assert seen[-1]["val/nll"] == pytest.approx(seen[-1]["val/ema/nll"])
    plain, _ = helpers.fit(average, net=helpers.Net, val=helpers.loader(), val_check_interval=1)
    assert equal(net, plain)
    with pytest.raises(ValueError, match=r"name='ema' must be one of \['wsm'\]"):
        callback.weights("ema")


def test_evaluate_needs_somebody_who_logs():
    for others in ([], [LogMetrics(weights=["raw"])]):
        with pytest.raises(ValueError, match=r"evaluate=True .* but no callback logs the merge"):
            fit(MergeCheckpoints(WSM(), evaluate=True), *others)


def test_batchnorm_is_estimated_anew():
    average = MergeCheckpoints(WSM(), last=2, every_n_steps=2)
    again = MergeCheckpoints(WSM(), last=2, every_n_steps=2, buffers="recalibrate")
    reference, _ = fit(net=NormNet())
    net, _ = fit(average, again, net=NormNet())
    assert equal(net, reference)
    assert net.training == reference.training
    estimated, mixed = NormNet(), NormNet()
    estimated.load_state_dict(torch.load(again.path)["state_dict"])
    mixed.load_state_dict(torch.load(average.path)["state_dict"])
    first, second = (load_file(average.path.parent / f"step={s}.safetensors") for s in (6, 8))
    share = 0.5**0.5
    mean = share * first["layers.1.running_mean"] + (1 - share) * second["layers.1.running_mean"]
    torch.testing.assert_close(mixed.layers[1].running_mean, mean)
    update_bn([x for x, _ in loader()], mixed)
    torch.testing.assert_close(estimated.layers[1].running_mean, mixed.layers[1].running_mean)
    torch.testing.assert_close(estimated.layers[1].running_var, mixed.layers[1].running_var)
    assert again.path.parent.name == "merge-v1"


def test_a_learning_rate_that_varied_in_the_window_warns():
    def decays(net, warmup=0):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        step = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 if step < warmup else 1.0 if step < 6 else 0.9
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": step, "interval": "step"}}

    net = Net()
    net.configure_optimizers = lambda: decays(net)
    with pytest.warns(UserWarning, match=r"learning rate varied by more than 1 % between the snapshots \[4, 6, 8\]"):
        fit(MergeCheckpoints(WSM(), last=3, every_n_steps=2), net=net)
    net = Net()
    net.configure_optimizers = lambda: decays(net, warmup=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*learning rate varied.*")
        fit(
            MergeCheckpoints(WSM(), last=2, every_n_steps=3),
            net=net,
            # the steps 3 and 6: the warm-up was before, the decay came later
        )


def test_the_least_and_the_greatest_rate_are_those_of_all_intervals():
    intervals = [
        {"0.0": [0.1, 0.4], "0.1": [1.0, 1.0], "1.0": [0.3, 0.3]},
        {"0.0": [0.2, 0.2], "0.1": [1.0, 1.005], "1.0": [0.1, 0.2]},
    ]
    assert varying_rates(intervals) == {"0.0": [0.1, 0.4], "1.0": [0.1, 0.3]}
    assert varying_rates(intervals, tolerance=0.001).keys() == {"0.0", "0.1", "1.0"}
    assert varying_rates(intervals[:1]) == {"0.0": [0.1, 0.4]}


# Going on


@pytest.mark.parametrize("epoch", [0, 1])
def test_resuming_goes_on_with_the_snapshots(tmp_path, epoch):
    def callbacks():
        saver = ModelCheckpoint(tmp_path / "ckpt", save_top_k=-1, filename="{epoch}")
        return [MergeCheckpoints(WSM(), last=4, every_n_steps=2, directory=tmp_path / "merge"), saver]

    whole = callbacks()
    net, _ = fit(*whole, epochs=epoch + 1)
    before = files(tmp_path / "merge")
    again = callbacks()
    resumed, _ = fit(*again, net=Net(), epochs=3, ckpt_path=tmp_path / "ckpt" / f"epoch={epoch}.ckpt")
    reference, _ = fit(epochs=3)
    assert equal(resumed, reference)
    assert again[0].path.parent == tmp_path / "merge"
    assert before == ([2, 4] if epoch == 0 else [2, 4, 6, 8])
    expected = slow(after(reference), [6, 8, 10, 12])
    torch.testing.assert_close(merged(again[0], net).double(), expected, rtol=0, atol=1e-6)
    assert torch.load(tmp_path / "ckpt" / f"epoch={epoch}.ckpt", weights_only=True)["callbacks"]


class Renamed(Net):
    """Has its layers under another name, and reads checkpoints that have the old one."""

    def __init__(self):
        super().__init__()
        self.body = self.layers
        del self.layers

    def forward(self, x):
        return self.body(x)

    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key.replace("layers.", "body."): value for key, value in state.items()}


def test_snapshots_of_other_names_are_refused_at_the_resume(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}")
    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=1)
    fit(callback, saver, epochs=1)
    begun = []
    again = MergeCheckpoints(WSM(), last=2, every_n_steps=1), Probe(on_train_batch_start=lambda *_: begun.append(1))
    with pytest.raises(ValueError, match=r"does not match Renamed: it lacks .*body.0.bias.*or move"):
        fit(*again, net=Renamed(), epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert not begun
    for path in callback.path.parent.glob("step=*.safetensors"):
        path.unlink()
    with pytest.warns(UserWarning, match="2 snapshots of the checkpoint are not there any more"):
        fit(*again, net=Renamed(), epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert "body.0.weight" in torch.load(again[0].path, weights_only=True)["state_dict"]


class Wider(Net):
    """Has another row in its first layer, and fills up checkpoints without it."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = self.state_dict()
        checkpoint["optimizer_states"][0]["state"] = {}


def test_snapshots_of_other_shapes_are_refused_at_the_resume(tmp_path):
    fit(MergeCheckpoints(WSM(), last=2, every_n_steps=1), ModelCheckpoint(tmp_path, filename="{epoch}"), epochs=1)
    begun = []
    again = MergeCheckpoints(WSM(), last=2, every_n_steps=1), Probe(on_train_batch_start=lambda *_: begun.append(1))
    with pytest.raises(ValueError, match=r"layers.0.weight is .*\(3, 4\) in .*\(4, 4\) in Wider.*or move"):
        fit(*again, net=Wider(), epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert not begun


def test_what_a_killed_training_had_begun_to_write_is_deleted_by_the_one_that_goes_on(tmp_path):
    callbacks = [MergeCheckpoints(WSM(), every_n_steps=1), ModelCheckpoint(tmp_path, filename="{epoch}")]
    fit(*callbacks, epochs=1)
    folder = callbacks[0].path.parent
    begun = [folder / name for name in (".merged.ckpt.1.23.tmp.ckpt", ".step=9.safetensors.1.23.tmp.safetensors")]
    others = [folder / name for name in (".mine.ckpt.12.34.tmp.ckpt", ".step=9.safetensors", "step=9.tmp.safetensors")]
    for path in (*begun, *others):
        path.touch()
    callback = MergeCheckpoints(WSM(), every_n_steps=1)
    fit(callback, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert callback.path.parent == folder
    assert not any(path.exists() for path in begun)
    assert all(path.exists() for path in others), "those are not ours"


def test_snapshots_stay_while_the_two_newest_checkpoints_need_them(tmp_path):
    seen = []
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=1)

    def look(*_):
        callback._window.finish()
        seen.append(files("merge"))

    fit(callback, saver, Probe(on_train_epoch_start=look), epochs=4)
    assert len(seen) == 4
    assert all(set(steps) >= {4 * i - 1, 4 * i} for i, steps in enumerate(seen) if i)
    assert all({4 * i - 5, 4 * i - 4} <= set(seen[i]) for i in (2, 3)), "the last but one checkpoint can go on"
    assert not {1, 2} & set(seen[-1])
    assert {3, 4} <= set(seen[2])
    assert not {3, 4} & set(files("merge"))
    fit(MergeCheckpoints(WSM(), last=2, every_n_steps=1), epochs=5, ckpt_path=tmp_path / "epoch=3.ckpt")
    assert files("merge") == [15, 16, 19, 20], "those of the newest checkpoint stay, what it left behind goes"


def test_a_process_that_does_not_write_deletes_nothing_either(tmp_path):
    module = nn.Linear(1, 1)
    writer, other = (window.Window(tmp_path, module, WSM(), last=1, writes=writes) for writes in (True, False))
    writer.take(1, {})
    writer.finish()
    for step in (1, 2):
        other.take(step, {})
    other.finish()
    assert other.steps == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["step=1.safetensors"]
    writer.close()
    other.close()


def test_snapshots_that_are_gone_are_told(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(MergeCheckpoints(WSM(), last=3, every_n_steps=2), saver, epochs=2)
    Path("merge/step=4.safetensors").unlink()
    callback = MergeCheckpoints(WSM(), last=3, every_n_steps=2)
    with pytest.warns(UserWarning, match=r"1 snapshots of the checkpoint are not there any more, or damaged: .*step=4"):
        net, _ = fit(callback, epochs=2, ckpt_path=tmp_path / "epoch=1.ckpt", net=Net())  # nothing is left to train
    reference, _ = fit(epochs=2)
    torch.testing.assert_close(merged(callback, net).double(), slow(after(reference), [6, 8]), rtol=0, atol=1e-6)


def test_other_settings_begin_anew_with_a_warning(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}")
    fit(MergeCheckpoints(WSM(), every_n_steps=2), saver, epochs=1)
    other = MergeCheckpoints(WSM(shape="linear"), every_n_steps=2)
    with pytest.warns(UserWarning, match="holds snapshots of other settings"):
        fit(other, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert files(other.path.parent) == [6, 8]


def test_a_function_as_shape_has_the_same_key_in_another_process():
    key = MergeCheckpoints(WSM(shape=lambda x: 1 - x)).state_key
    assert "0x" not in key
    assert key == MergeCheckpoints(WSM(shape=lambda x: 1 - x)).state_key


def test_fit_twice_and_two_at_once_use_folders_of_their_own():
    one, two = (MergeCheckpoints(WSM(shape=shape), every_n_steps=2) for shape in ("linear", "square"))
    for folders in (["merge", "merge-v1"], ["merge-v2", "merge-v3"]):
        net, _ = fit(one, two)
        assert [one.path.parent.name, two.path.parent.name] == folders
        for shape, callback in (("linear", one), ("square", two)):
            shares = wsm_coefficients([2, 4, 6, 8], shape=shape)
            expected = sum(c * after(net)[step - 1].double() for c, step in zip(shares, (2, 4, 6, 8)))
            torch.testing.assert_close(merged(callback, net).double(), expected, rtol=0, atol=1e-6)


# What goes wrong


def test_an_error_of_the_writer_surfaces_and_leaves_no_half_file(monkeypatch):
    def full(path, *args):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    callback = MergeCheckpoints(WSM(), every_n_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(window, "write_safetensors", full)
        with pytest.raises(OSError, match="No space left"):
            fit(callback)
    assert not list(Path("merge").iterdir())
    net, _ = fit(callback)
    assert len(merged(callback, net))


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_epoch_end", "on_train_end"])
def test_an_exception_leaves_nothing_behind(hook):
    def fail(trainer, *_):
        if trainer.global_step:
            raise RuntimeError("stop")

    callback = MergeCheckpoints(WSM(), every_n_steps=1)
    net, optimizers = Net(), []
    remember = Probe(on_train_start=lambda trainer, module: optimizers.extend(trainer.optimizers))
    with pytest.raises(RuntimeError, match="stop"):
        fit(callback, remember, Probe(**{hook: fail}), net=net, val=True)
    assert not [hook for hook in optimizers[0]._optimizer_step_post_hooks.values() if "OptimizerSteps" in repr(hook)]
    assert not [path for path in Path("merge").iterdir() if "tmp" in path.name]
    fit(callback)
    assert callback.path.parent.name == "merge-v1"


def test_the_training_goes_on_while_a_snapshot_is_written(monkeypatch):
    """A slow disk: the writer is far behind, the weights move on, and the files hold what was then."""
    write, ends = window.write_snapshot, []

    def slowly(path, *args):
        time.sleep(0.2)
        write(path, *args)
        ends.append(path.name)

    monkeypatch.setattr(window, "write_snapshot", slowly)
    callback, at = MergeCheckpoints(WSM(), last=2, every_n_steps=3), []
    probe = Probe(on_train_batch_end=lambda t, *_: at.append((t.global_step, len(ends))))
    net, _ = fit(callback, probe)
    assert dict(at)[4] == 0, "a step was taken before the first file was there"
    for step in (3, 6):
        again = Net()
        again.load_state_dict(load_file(f"merge/step={step}.safetensors"))
        assert torch.equal(flat(again), after(net)[step - 1])


def test_the_queue_is_bounded():
    background, running = Background(waiting=2), []
    start = time.monotonic()
    for number in range(5):
        background.submit(lambda n=number: (time.sleep(0.05), running.append(n)))
    assert time.monotonic() - start >= 0.1
    background.wait()
    assert running == list(range(5))
    background.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    (thread,) = background._executor._threads
    background.close()
    assert not thread.is_alive()
    background.submit(running.append, 9)
    assert running[-1] == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": 1}, "method=1 must be a merge"),
        ({"last": 0}, "last=0 must be >= 1"),
        ({"every_n_steps": 0}, "every_n_steps=0 must be >= 1"),
        ({"start_step": -1}, "start_step=-1 must be >= 0"),
        ({"buffers": "copy"}, "buffers='copy' must be"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        MergeCheckpoints(**{"method": WSM(), **settings})


def test_copies_have_the_settings_and_begin_anew():
    callback = WSMCallback(shape="linear", last=2, every_n_steps=2)
    fit(callback)
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert (other.last, other.state_key) == (2, callback.state_key)
        for ask in (operator.attrgetter("path"), operator.methodcaller("weights", "wsm")):
            with pytest.raises(
                RuntimeError, match=r"No training has begun with this WSMCallback .* ask the one in trainer\.callbacks"
            ):
                ask(other)
        _, runner = fit(other)
        assert other.path is not None
        assert next(c for c in runner.callbacks if isinstance(c, MergeCheckpoints)).path == other.path


def test_it_does_nothing_outside_of_a_fit():
    callback = MergeCheckpoints(WSM(), every_n_steps=1, evaluate=True)
    from averaging_nets import trainer

    trainer(callback).validate(Net(), loader(), verbose=False)
    assert callback.names == ()
    assert not Path("merge").exists()


def test_a_trial_run_merges_and_leaves_no_files(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    callback = MergeCheckpoints(WSM(), last=2, every_n_steps=1, directory=tmp_path / "merge")
    fit(callback, fast_dev_run=2)
    assert callback.path is None
    assert not list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.ckpt"))
    assert not list((tmp_path / "scratch").glob("merge-*"))
