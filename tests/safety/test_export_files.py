"""Checkpoints to export from: raw weights and average that fit each other, or no output."""

import lightning as L
import pytest
import torch
from averaging_nets import fit
from corruptions import (
    DRAWN,
    EXAMPLES,
    HIDDEN,
    REPLACED,
    contents,
    drawn,
    nothing_left,
    unless_refused,
    unreadable,
    with_a_bit_changed,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import AverageWeights
from lightning_objectives.cli import main
from lightning_objectives.merging import export_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a checkpoint of an averaged training."""
    folder = tmp_path_factory.mktemp("saved")
    fit(AverageWeights(EMA(decay=0.5)), ModelCheckpoint(folder, filename="x"))
    return (folder / "x.ckpt").read_bytes()


def write(folder, whole, change=lambda frame: frame):
    path = folder / "a.ckpt"
    path.write_bytes(whole)
    torch.save(change(torch.load(path, weights_only=True)), path)
    return path


def state(path):
    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return found.get("state_dict", found)


def refused(path, sentence="", weights=("raw", "average")):
    for kind in weights:
        for suffix in (".ckpt", ".safetensors"):
            with nothing_left(path.parent), pytest.raises(ValueError, match=sentence) as caught:
                export_checkpoint(path, path.parent / f"out{suffix}", weights=kind)
            assert path.name in str(caught.value)


@pytest.mark.parametrize("damage", DRAWN)
@pytest.mark.parametrize("weights", ["raw", "average"])
def test_damage(tmp_path, saved, weights, damage):
    path, out = write(tmp_path, saved), tmp_path / "out.ckpt"
    expected = state(export_checkpoint(path, out, weights=weights))
    out.unlink()
    whole = path.read_bytes()

    def run(draw):
        path.write_bytes(DRAWN[damage](whole, draw))
        before = contents(tmp_path)
        if unless_refused(lambda: export_checkpoint(path, out, weights=weights), path):
            # What was hit is beside all that is kept in the file.
            found = state(out)
            out.unlink()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert contents(tmp_path) == before

    drawn(EXAMPLES, run)


def test_a_bit_of_a_weight(tmp_path, saved):
    path = write(tmp_path, saved)
    path.write_bytes(
        with_a_bit_changed(path.read_bytes(), torch.load(path, weights_only=True)["state_dict"]["layers.2.weight"])
    )
    refused(path, "its checksums do not agree")


@pytest.mark.parametrize("kind", REPLACED)
def test_something_else_in_its_place(tmp_path, saved, kind):
    path = write(tmp_path, saved)
    REPLACED[kind](path)
    refused(path)


def test_no_permission(saved):
    with unreadable() as folder:
        path = write(folder, saved)
        path.chmod(0)
        refused(path, "PermissionError")


@pytest.mark.parametrize("where", HIDDEN)
def test_code(tmp_path, saved, where):
    refused(write(tmp_path, saved, HIDDEN[where]), "could run code")


def of_average(**changes):
    """A checkpoint whose average's state is another."""

    def change(frame):
        key = next(key for key in frame["callbacks"] if key.startswith("AverageWeights"))
        frame["callbacks"][key] |= {k: make(frame["callbacks"][key][k]) for k, make in changes.items()}
        return frame

    return change


def first(change):
    """The first of the raw weights is another."""
    return of_average(raw=lambda raw: {**raw, next(iter(raw)): change(next(iter(raw.values())))})


FORMS = {
    "callbacks are a list": (lambda frame: frame | {"callbacks": [1]}, "callbacks of the form list"),
    "no average": (lambda frame: frame | {"callbacks": {}}, "holds no average beside raw weights"),
    "raw are a list": (of_average(raw=lambda raw: list(raw.values())), "raw weights that are no tensors by name"),
    "raw by number": (of_average(raw=lambda raw: dict(enumerate(raw.values()))), "no tensors by name"),
    "raw are texts": (of_average(raw=lambda raw: dict.fromkeys(raw, "w")), "no tensors by name"),
    "raw of another network": (of_average(raw=lambda raw: {f"{k}s": v for k, v in raw.items()}), "does not know"),
    "raw of another shape": (first(lambda w: w[:1]), r"but the average as .*give a checkpoint as it was saved"),
    "raw of another type": (first(lambda w: w.double()), "torch.float64 .*but the average as"),
    "raw without values": (first(lambda w: w.to("meta")), "no tensors by name"),
}


@pytest.mark.parametrize("kind", FORMS)
def test_averages_of_another_form(tmp_path, saved, kind):
    change, sentence = FORMS[kind]
    refused(write(tmp_path, saved, change), sentence, weights=["raw"])


def test_a_plain_checkpoint(tmp_path):
    frame = {"state_dict": {"w": torch.ones(1)}, "pytorch-lightning_version": L.__version__}
    torch.save(frame, tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", "it is a plain checkpoint, .* Give a full checkpoint")


@pytest.mark.parametrize("kind", REPLACED)
def test_the_command(tmp_path, saved, kind, capsys):
    path = write(tmp_path, saved)
    REPLACED[kind](path)
    with nothing_left(tmp_path), pytest.raises(SystemExit) as ended:
        main(["export", str(path), "-o", str(tmp_path / "out.ckpt"), "--weights", "raw"])
    assert ended.value.code == 2
    assert str(path) in capsys.readouterr().err
