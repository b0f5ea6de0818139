"""Checkpoints, snapshots and caches that an earlier version wrote can still be read."""

import tempfile
from functools import cache
from pathlib import Path

import earlier_files
import pytest
import torch
from torch import Tensor, nn

from lightning_objectives.merging import WSM, merge_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
FILES = Path(__file__).parents[1] / "data" / "earlier"
PARTS = ("state_dict", "callbacks", "optimizer_states", "objective_modules", "global_step", "epoch")
"""What of a checkpoint is compared; the rest is Lightning's own."""


def differences(a, b, tolerance, path=""):
    """The places at which two checkpoints' contents differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        yield from (f"{path}.{key}: is in one alone" for key in a.keys() ^ b.keys())
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], tolerance, f"{path}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (mine, theirs) in enumerate(zip(a, b)):
            yield from differences(mine, theirs, tolerance, f"{path}.{i}")
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = (a.dtype, a.shape) == (b.dtype, b.shape)
        if not (alike and (torch.equal(a, b) if tolerance == 0 else torch.allclose(a, b, rtol=0, atol=tolerance))):
            yield f"{path}: {a} and {b}"
    elif a != b and not (tolerance and isinstance(a, float) and abs(a - b) < tolerance):
        yield f"{path}: {a!r} and {b!r}"


def parts(checkpoint):
    return {part: checkpoint[part] for part in PARTS if part in checkpoint}


def unpacked(name, folder):
    """The files of a training in a folder, and what they left when they went on in the version that wrote them."""
    earlier_files.copied(FILES / name, folder, earlier_files.FOLDER, str(folder))
    left = torch.load(FILES / name / "resumed.pt", weights_only=True)
    return earlier_files.moved(left, earlier_files.FOLDER, str(folder))


def gone_on(name, folder):
    """What a training leaves now that goes on from the middle, and what it left then."""
    then = unpacked(name, folder)
    now = earlier_files.outcome(*earlier_files.fit(name, folder, ckpt_path=folder / "middle.ckpt"), folder)
    return now, then


@cache
def same_processor():
    """Whether this machine rounds as the one that wrote the files: told by a training without any plug-in."""
    with tempfile.TemporaryDirectory() as scratch:
        now, then = gone_on("plain", Path(scratch))
    return not list(differences(parts(now["end"]), parts(then["end"]), 0))


@pytest.mark.parametrize("name", ["plain", "five", "others", "mixed"])
def test_a_training_goes_on_from_its_middle_as_it_did_then(name, tmp_path):
    """To the bit, where the processor rounds as then."""
    tolerance = 0 if same_processor() else 1e-9
    now, then = gone_on(name, tmp_path)
    assert now.keys() == then.keys()
    assert not list(differences(parts(now["end"]), parts(then["end"]), tolerance))
    assert not list(differences(now.get("merged"), then.get("merged"), tolerance))


@pytest.mark.parametrize("name", ["five", "others", "mixed"])
def test_what_is_loaded_is_saved_again_to_the_bit(name, tmp_path):
    """A training of which nothing is left: no arithmetic, hence on every processor."""
    unpacked(name, tmp_path)
    then = torch.load(tmp_path / "end.ckpt", weights_only=True)
    now = earlier_files.outcome(*earlier_files.fit(name, tmp_path, ckpt_path=tmp_path / "end.ckpt"), tmp_path)["end"]
    assert not list(differences(now["state_dict"], then["state_dict"], 0))
    assert now["callbacks"].keys() == then["callbacks"].keys()
    averages = {key: state for key, state in then["callbacks"].items() if "averages" in state}
    assert averages or name == "plain"
    for key, state in averages.items():
        assert not list(differences(now["callbacks"][key], state, 0))


@pytest.mark.parametrize("name", ["five", "others", "mixed"])
def test_checkpoints_open_as_plain_ones(name):
    for file in ("middle.ckpt", "end.ckpt"):
        state = torch.load(FILES / name / file, weights_only=True)["state_dict"]
        earlier_files.Net().load_state_dict(state)


def test_a_window_of_snapshots_is_merged_by_hand(tmp_path):
    folder = FILES / "five" / "merge"
    merged = merge_checkpoints([folder / f"step={step}.safetensors" for step in (8, 10, 12)], WSM(), tmp_path / "m.pt")
    then = torch.load(folder / "merged.ckpt", weights_only=True)["state_dict"]
    assert not list(differences(torch.load(merged, weights_only=True), dict(then), 0))


def test_a_cache_of_logits_answers_for_the_teacher(tmp_path, monkeypatch):
    """Every sample is in it, so that the teacher is not asked once more; and it is known by the same fingerprint."""

    def asked(self, *args):
        raise AssertionError("the teacher was asked")

    unpacked("five", tmp_path)
    taught = earlier_files.teacher()
    monkeypatch.setattr(earlier_files, "teacher", lambda: taught)
    monkeypatch.setattr(nn.Sequential, "forward", forward_but_for(taught, asked))
    earlier_files.fit("five", tmp_path, ckpt_path=tmp_path / "middle.ckpt")


def forward_but_for(network, instead):
    """`nn.Sequential.forward`, with something else for copies of a network."""
    forward = nn.Sequential.forward
    first = network[0].weight

    def either(self, x):
        mine = len(self) == len(network) and torch.equal(getattr(self[0], "weight", x), first)
        return instead(self, x) if mine else forward(self, x)

    return either
