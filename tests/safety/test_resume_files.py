"""Checkpoints to go on from, with each callback: taken, or refused with a sentence; then the objects are free again."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from corruptions import DRAWN, EXAMPLES, HIDDEN, REPLACED, contents, drawn, trace, unless_refused, with_a_bit_changed
from helpers import Net, equal, loader, trainer
from hypothesis import strategies as st
from resume_runs import MADE, checkpoint, run
from safetensors.torch import load_file, save_file

from lightning_objectives import callbacks
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.random import random_state, set_random_state

pytestmark = pytest.mark.filterwarnings("ignore")

STATEFUL = ("AverageWeights", "MergeCheckpoints", "DualHead", "Calibrate", "TransformGradients", "RestoreRandomState")


@pytest.fixture
def saved(request, tmp_path_factory, monkeypatch):
    """A working directory of the test's own with the checkpoint ``a.ckpt`` of the callback, made once."""
    name = request.getfixturevalue("name")
    made = _MADE.get(name)
    if made is None:
        made = tmp_path_factory.mktemp(name)
        monkeypatch.chdir(made)
        checkpoint(name, made / "a.ckpt")
        _MADE[name] = made
    here = tmp_path_factory.mktemp("resumed")
    monkeypatch.chdir(made)  # snapshots are known by their whole paths
    shutil.copy(made / "a.ckpt", here / "a.ckpt")
    return here / "a.ckpt"


_MADE: dict[str, Path] = {}


def resumed(name, path, *, lightning=()):
    """Go on from a file; returns the weights, None where it is refused, and training without it works then.

    In both cases module and strategy are as they were before.
    """
    before_files = contents(path.parent)
    net = Net()
    _, plain = run("LogMetrics", net, epochs=1, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0)
    plain()
    before = trace(net)
    runner, fit = run(name, net, epochs=2, ckpt_path=path)
    done = unless_refused(lambda: fit() or True, path, (ValueError, *lightning))
    assert trace(net) == before
    assert not any(isinstance(value, Patch) for value in vars(runner.strategy).values())
    assert contents(path.parent) == before_files
    assert not Path("ran").exists()
    if done:
        return net.state_dict()
    runner.fit(net, loader(), loader(seed=1))
    assert trace(net) == before
    assert all(value.isfinite().all() for value in net.state_dict().values())
    return None


@pytest.mark.parametrize("name", STATEFUL)
def test_the_sound_file(saved, name):
    assert resumed(name, saved)


@pytest.mark.parametrize("damage", DRAWN)
@pytest.mark.parametrize("name", ["AverageWeights", "RestoreRandomState"])
def test_damage(saved, name, damage):
    """Nothing that was hit has a part in what is trained, or the file is refused."""
    whole, sound = saved.read_bytes(), resumed(name, saved)

    def one(draw):
        saved.write_bytes(DRAWN[damage](whole, draw))
        found = resumed(name, saved)
        assert found is None or equal(found, sound)

    drawn(EXAMPLES // 3, one)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_bit_of_a_weight(saved, name):
    saved.write_bytes(
        with_a_bit_changed(saved.read_bytes(), torch.load(saved, weights_only=True)["state_dict"]["fc.bias"])
    )
    assert not torch.load(saved, weights_only=True)["state_dict"]["fc.bias"].isnan().any()  # torch reads it
    assert resumed(name, saved) is None


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("name", ["MergeCheckpoints", "Calibrate", "DualHead"])
def test_something_else_in_its_place(saved, name, kind):
    REPLACED[kind](saved)
    assert resumed(name, saved, lightning=(OSError,)) is None


@pytest.mark.parametrize("content", [b"PK\x03\x04 and no end", b"<html>not found</html>"])
def test_a_file_without_an_end_says_so(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    sentence = f"is cut off, or is no checkpoint: its {len(content)} bytes"
    with pytest.raises(ValueError, match=sentence) as caught:
        trainer(callbacks.RestoreRandomState()).fit(Net(), loader(), ckpt_path=path)
    assert ("It is a web page" in str(caught.value)) == content.startswith(b"<")


@pytest.mark.parametrize("where", HIDDEN)
@pytest.mark.parametrize("name", ["AverageWeights", "TransformGradients"])
def test_code(saved, name, where):
    torch.save(HIDDEN[where](torch.load(saved, weights_only=True)), saved)
    assert resumed(name, saved) is None


def leaves(tree, path=()):
    """The paths to all that lies in a state."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def without(tree, path):
    inner, last = _within(tree, path)
    del inner[last]


def instead(value):
    def change(tree, path):
        inner, last = _within(tree, path)
        inner[last] = copy.deepcopy(value)

    return change


def reshaped(tree, path):
    inner, last = _within(tree, path)
    old = inner[last]
    inner[last] = torch.cat([old.flatten(), old.flatten()[:1]]) if isinstance(old, torch.Tensor) else [old]


def renamed(tree, path):
    inner, last = _within(tree, path)
    if isinstance(inner, dict):
        inner[f"{last}s"] = inner.pop(last)
    else:
        inner.pop(last)


def _within(tree, path):
    for key in path[:-1]:
        inner = tree[key]
        if isinstance(inner, tuple):
            tree[key] = inner = list(inner)
        tree = inner
    return tree, path[-1]


CHANGES = {
    "without": without,
    "a text": instead("x"),
    "nothing": instead(None),
    "a list": instead([]),
    "a table": instead({"a": torch.ones(1)}),
    "a tensor": instead(torch.ones(2)),
    "NaN": instead(float("nan")),
    "reshaped": reshaped,
    "renamed": renamed,
}


def ours(frame, name):
    """The states in a checkpoint that are this package's, as one tree: those that the changes are made in."""
    key = {"DualHead": "Distill"}.get(name, name)
    states = {"callbacks": {k: v for k, v in frame["callbacks"].items() if k.startswith(key)}}
    return states | {k: v for k, v in frame.items() if k == "objective_modules"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", STATEFUL)
def test_states_of_another_form(saved, name, change):
    frame = torch.load(saved, weights_only=True)
    # What an optimizer keeps for a parameter is its own to judge, as without this package.
    tops = [("callbacks",), ("objective_modules",)]
    paths = [p for p in leaves(ours(frame, name)) if p not in tops and not (p[0] == "objective_modules" and p[3:])]

    def one(draw):
        changed = copy.deepcopy(frame)
        CHANGES[change](changed, draw(st.sampled_from(paths)))
        torch.save(changed, saved)
        resumed(name, saved)

    drawn(EXAMPLES // 6, one)


WHOLE = {
    "a plain state dict": lambda frame: dict(frame["state_dict"]),
    "a list": lambda frame: [frame],
    "callbacks are a list": lambda frame: frame | {"callbacks": [1]},
    "no version": lambda frame: frame | {"pytorch-lightning_version": 2},
    "weights are a tensor": lambda frame: frame | {"state_dict": torch.ones(2)},
    "more classes": lambda frame: frame | {"state_dict": Net(classes=5).state_dict()},
    "names of another network": lambda frame: frame | {"state_dict": {"w": torch.ones(2)}},
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("name", ["AverageWeights", "MergeCheckpoints"])
def test_another_checkpoint(saved, name, kind):
    torch.save(WHOLE[kind](torch.load(saved, weights_only=True)), saved)
    # What does not fit the module is Lightning's to say, and has no name of a file.
    try:
        assert resumed(name, saved) is None
    except RuntimeError as error:
        assert kind in ("more classes", "names of another network")  # said of some kinds only
        assert "loading state_dict for Net" in str(error)  # noqa: PT017


def test_random_states_are_put_back_whole_or_not_by_halves():
    """The last of the generators has a state that is none: the first keeps its own."""
    other = random_state()
    before = torch.get_rng_state(), (torch.rand(3), torch.get_rng_state())[1]
    with pytest.raises((TypeError, ValueError)):
        set_random_state({**other, "torch": before[0], "python": (3, (1,), None)})
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not torch.equal(*before)


# The snapshots that a checkpoint tells of.


@pytest.mark.parametrize("name", ["MergeCheckpoints"])
@pytest.mark.parametrize("damage", [*DRAWN, *(kind for kind in REPLACED if kind != "other_format")])
def test_snapshots(saved, name, damage):
    """One that cannot be opened counts as gone; one that can is merged or refused by name."""
    files = sorted(Path("merge").glob("step=*.safetensors"))
    kept = {file: file.read_bytes() for file in files}
    whole = kept[files[0]]

    def one(draw):
        if damage in DRAWN:
            files[0].write_bytes(DRAWN[damage](whole, draw))
        else:
            REPLACED[damage](files[0])
        net = Net()
        _, fit = run(name, net, epochs=1, ckpt_path=saved)  # nothing is left to train but to merge
        Path("merge/merged.ckpt").unlink(missing_ok=True)
        if unless_refused(lambda: fit() or True, files[0]):
            merged = torch.load("merge/merged.ckpt", weights_only=True)["state_dict"]
            assert all(value.isfinite().all() for value in merged.values())
        else:
            assert not Path("merge/merged.ckpt").exists()
        assert not list(Path("merge").glob(".*"))
        if files[0].is_dir():
            files[0].rmdir()
        files[0].unlink(missing_ok=True)
        files[0].write_bytes(whole)

    drawn(EXAMPLES // 3, one) if damage in DRAWN else one(None)


@pytest.mark.parametrize("name", ["MergeCheckpoints"])
def test_a_snapshot_of_another_network(saved, name):
    file = sorted(Path("merge").glob("step=*.safetensors"))[0]
    whole, tensors = file.read_bytes(), load_file(file)
    for change in (
        {"fc.bias": torch.ones(7)},
        {"fc.bias": torch.tensor([0.0, torch.nan, 0.0])},
        {"more": torch.ones(1)},
    ):
        save_file({**tensors, **change}, file, {"step": "1"})
        _, fit = run(name, Net(), epochs=1, ckpt_path=saved)
        with pytest.raises(ValueError, match=file.name):
            fit()
        assert not list(Path("merge").glob(".*"))
    file.write_bytes(whole)


ELSEWHERE = {
    "to delete": lambda window, other: window["left"].append(str(other)),
    "to merge and then to delete": lambda window, other: window["entries"][0].update(file=str(other)),
    "by another folder": lambda window, other: window.update(folder=str(other.parent)),
    "upwards": lambda window, other: window["left"].append(f"{window['folder']}/../{other.name}"),
    "in the folder": lambda window, other: window["left"].append(f"{window['folder']}/merged.ckpt"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
@pytest.mark.parametrize("name", ["MergeCheckpoints"])
def test_no_checkpoint_makes_us_delete_files(saved, name, kind):
    """Snapshots that leave the window are deleted; what is none is not."""
    other = saved.parent / "precious.safetensors"
    save_file({"w": torch.ones(1)}, other)
    frame = torch.load(saved, weights_only=True)
    key = next(key for key in frame["callbacks"] if key.startswith(name))
    ELSEWHERE[kind](frame["callbacks"][key]["window"], other)
    torch.save(frame, saved)
    assert resumed(name, saved) is None
    assert other.exists()


# What is saved.


def test_the_table_has_every_callback():
    assert set(callbacks.__all__) == set(MADE) - {"DualHead"}


@pytest.mark.parametrize("name", MADE)
def test_every_state_is_plain(saved, name):
    """It opens where nothing but plain values may be opened, is saved the same again, and the training goes on."""
    frame = torch.load(saved, weights_only=True)
    torch.save(frame, saved)
    again = torch.load(saved, weights_only=True)
    assert repr(again["callbacks"]) == repr(frame["callbacks"])
    assert name not in STATEFUL or ours(frame, name)["callbacks"]
    assert resumed(name, saved)
