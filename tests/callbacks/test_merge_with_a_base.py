"""MergeCheckpoints with a merge that is no sum of shares: its base, and what it cannot run."""

import warnings
from pathlib import Path

import helpers
import pytest
import torch
from averaging_nets import Net, NormNet, equal, fit, flat
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from lightning_objectives.callbacks import LogMetrics, MergeCheckpoints
from lightning_objectives.merging import TIES, WSM, FisherMerging, GreedySoup, merge_checkpoints, ties_merge

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


def merged(callback, net):
    state = torch.load(callback.path, weights_only=True)["state_dict"]
    return torch.cat([state[name].flatten() for name, _ in net.named_parameters()])


def expected(net, steps, base, **settings):
    """From the weights that the net saw after each step, as one vector."""
    path = [*net.path[1:], flat(net)]
    return ties_merge([path[step - 1] for step in steps], base=base, **settings)


def test_the_base_is_the_weights_with_which_the_fit_begins():
    reference, _ = fit()
    callback = MergeCheckpoints(TIES(density=0.5, scale=2.0), last=3, every_n_steps=2)
    net, _ = fit(callback)
    assert equal(net, reference), "the training is untouched"
    found = merged(callback, net)
    torch.testing.assert_close(found, expected(net, [4, 6, 8], net.path[0], density=0.5, scale=2.0), rtol=0, atol=1e-6)
    assert not torch.allclose(found, flat(net))
    names = [name for name, _ in net.named_parameters()]
    base = load_file(callback.path.parent / "base.safetensors")
    assert torch.equal(torch.cat([base[name].flatten() for name in names]), net.path[0])


def test_the_base_may_be_a_file(tmp_path):
    net = Net()
    other = {name: torch.full_like(value, 0.3) for name, value in net.state_dict().items()}
    save_file(other, tmp_path / "pretrained.safetensors")
    callback = MergeCheckpoints(TIES(), last=2, every_n_steps=2, base=tmp_path / "pretrained.safetensors")
    net, _ = fit(callback)
    base = torch.full_like(flat(net), 0.3)
    torch.testing.assert_close(merged(callback, net), expected(net, [6, 8], base), rtol=0, atol=1e-6)
    assert not (callback.path.parent / "base.safetensors").exists()


def test_it_is_what_the_function_makes_of_the_files():
    callback = MergeCheckpoints(TIES(), last=2, every_n_steps=2)
    net, _ = fit(callback)
    folder = callback.path.parent
    files = [folder / f"step={step}.safetensors" for step in (6, 8)]
    again = load_file(merge_checkpoints(files, TIES(), "again.safetensors", base=folder / "base.safetensors"))
    state = torch.load(callback.path)["state_dict"]
    assert all(torch.equal(again[name], state[name]) for name, _ in net.named_parameters())


def test_a_resumed_fit_goes_on_with_the_first_base():
    settings = {"last": 2, "every_n_steps": 2}
    whole = MergeCheckpoints(TIES(), **settings, directory="whole")
    net, _ = fit(whole)
    first = MergeCheckpoints(TIES(), **settings, directory="parts")
    fit(first, ModelCheckpoint(".", filename="half", every_n_epochs=1, save_top_k=-1), epochs=1)
    second = MergeCheckpoints(TIES(), **settings, directory="parts")
    again, _ = fit(second, ckpt_path="half.ckpt")
    assert torch.equal(merged(second, again), merged(whole, net))
    assert second.path.parent == Path("parts").absolute()
    Path("parts/base.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot merge without its base: .*base.safetensors does not exist.* Put it"):
        fit(MergeCheckpoints(TIES(), **settings, directory="parts"), ckpt_path="half.ckpt")


def test_buffers_are_averaged_and_take_no_part_in_the_trim():
    """The module knows which tensors are buffers: BatchNorm's statistics move more than any weight here."""
    callback = MergeCheckpoints(TIES(density=0.2), last=2, every_n_steps=2)
    fit(callback, net=NormNet())
    folder = callback.path.parent
    states = [load_file(folder / f"step={step}.safetensors") for step in (6, 8)]
    base, found = load_file(folder / "base.safetensors"), torch.load(callback.path)["state_dict"]
    buffers = {name for name, _ in NormNet().named_buffers()}
    floats = [name for name in base if base[name].is_floating_point() and name not in buffers]
    vectors = [torch.cat([state[name].flatten() for name in floats]) for state in (base, *states)]
    trimmed = ties_merge(vectors[1:], base=vectors[0], density=0.2)
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in floats]), trimmed, rtol=0, atol=1e-6)
    moving = [name for name in buffers if base[name].is_floating_point()]
    assert moving
    for name in moving:
        torch.testing.assert_close(found[name], (states[0][name] + states[1][name]) / 2)


def test_no_word_of_learning_rates_for_a_merge_without_steps(recwarn):
    class Falling(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    with pytest.warns(UserWarning, match="learning rate varied"):
        fit(MergeCheckpoints(WSM(), last=2, every_n_steps=2), net=Falling())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*learning rate varied")
        fit(MergeCheckpoints(TIES(), last=2, every_n_steps=2), net=Falling())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (GreedySoup(), {}, r"asks for evaluate, which MergeCheckpoints does not have .* evaluate=\.\.\.\)"),
        (FisherMerging(), {}, r"asks for importance, .* merge_checkpoints\(files, method, out, importance=\.\.\.\)"),
        (
            WSM(),
            {"base": "x.safetensors"},
            r"base='x.safetensors' would change nothing, because WSM\(.* does not use a base",
        ),
        (TIES(), {"keep": "sum"}, r"keep='sum' adds up snapshots times their shares, but TIES\(.* Use keep='files'"),
    ],
)
def test_what_a_training_cannot_run_is_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        MergeCheckpoints(method, **settings)


def test_a_base_that_does_not_fit_is_refused_before_the_training(tmp_path):
    with pytest.raises(ValueError, match=r"cannot merge without its base: .*none\.safetensors does not exist"):
        fit(MergeCheckpoints(TIES(), base="none.safetensors"))
    save_file({"layers.0.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    net = Net()
    with pytest.raises(ValueError, match=r"without its base: .*other\.safetensors does not match the module: it lacks"):
        fit(MergeCheckpoints(TIES(), base=tmp_path / "other.safetensors"), net=net)
    assert not getattr(net, "path", [])


def test_settings_without_a_base_keep_the_key_of_earlier_files():
    assert "base" not in MergeCheckpoints(WSM()).state_key
    keys = {MergeCheckpoints(TIES(), base=base).state_key for base in (None, "a.pt", Path("b.pt"))}
    assert len(keys) == 3


def test_it_is_evaluated_under_its_name():
    callback = MergeCheckpoints(TIES(), last=2, every_n_steps=2, evaluate=True)
    log = LogMetrics(weights=["average"])
    _, trainer = helpers.fit(log, callback, net=helpers.Net, val=helpers.loader(), val_check_interval=1)
    again = helpers.Net()
    again.load_state_dict(torch.load(callback.path, weights_only=True)["state_dict"])
    x, y = helpers.data().tensors
    expected = torch.nn.functional.cross_entropy(again(x), y).item()
    assert float(trainer.callback_metrics["val/ties/nll"]) == pytest.approx(expected, abs=1e-5)
