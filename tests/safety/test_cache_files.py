"""Files of a cache of logits: what a teacher said is read as it was written, or refused with a sentence."""

import json
import pickle
import struct

import pytest
import torch
from corruptions import DRAWN, EXAMPLES, REPLACED, Runs, contents, drawn, nothing_left, unless_refused, unreadable
from safetensors.torch import load_file, save_file

from lightning_objectives._files.logit_cache import LogitCache

INDEX, INPUTS = torch.arange(6), torch.arange(24.0).reshape(6, 4)


def says(rows):
    return torch.stack([rows.sum(1), rows[:, 0], -rows[:, 1], rows.prod(1)], 1)


def asked(rows):
    """What the teacher says of the rows that are asked."""
    return says(INPUTS[rows])


def cache(folder, top_k=None):
    return LogitCache(str(folder), top_k=top_k, teacher="a")


def write(folder, top_k=None):
    made = cache(folder, top_k)
    made(INDEX, INPUTS, asked)
    made.save()
    return folder / "logits-0.safetensors"


def refused(path, sentence, top_k=None):
    with nothing_left(path.parent), pytest.raises(ValueError, match=sentence) as caught:
        cache(path.parent, top_k)
    assert path.name in str(caught.value)
    assert "delete it" in str(caught.value)


@pytest.mark.parametrize("damage", DRAWN)
@pytest.mark.parametrize("top_k", [None, 2])
def test_damage(tmp_path, top_k, damage):
    path = write(tmp_path, top_k)
    whole = path.read_bytes()
    size = 8 + struct.unpack("<Q", whole[:8])[0]

    def run(draw):
        path.write_bytes(DRAWN[damage](whole, draw))
        before = contents(tmp_path)
        made = unless_refused(lambda: cache(tmp_path, top_k), path)
        if made is not None:
            assert path.read_bytes()[:size] == whole[:size] or damage == "flipped"
            assert len(path.read_bytes()) == len(whole)
            try:
                found = made(INDEX, INPUTS, asked)
            except ValueError as error:  # a checksum of the inputs was hit
                assert "are not those that" in str(error)  # noqa: PT017  # one of two ways
            else:
                assert found.shape == (6, 4)
                assert not found.isnan().any()
        assert contents(tmp_path) == before

    drawn(EXAMPLES, run)


@pytest.mark.parametrize("kind", [kind for kind in REPLACED if kind != "missing"])
def test_something_else_in_its_place(tmp_path, kind):
    path = write(tmp_path)
    REPLACED[kind](path)
    refused(path, "is damaged|cannot be read")


def test_a_file_that_is_missing_is_made_anew(tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    path.unlink()
    assert write(tmp_path).read_bytes() == whole


def test_no_permission():
    with unreadable() as folder:
        path = write(folder)
        path.chmod(0)
        refused(path, "cannot be read .*Permission denied")


def test_code(tmp_path):
    path = write(tmp_path)
    path.write_bytes(pickle.dumps(Runs()))
    refused(path, "is damaged")
    torch.save({"values": Runs()}, path)
    refused(path, "is damaged")


def rows(change):
    """A file with other rows, under the right label."""

    def write_(path):
        with path.open("rb") as file:
            label = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]
        save_file(change(load_file(path)), path, label)

    return write_


def label(**changes):
    def write_(path):
        right = {"teacher": "a", "top_k": "None", "classes": "4"} | changes
        save_file(load_file(path), path, {key: value for key, value in right.items() if value is not None})

    return write_


def nan(value):
    return torch.where(torch.arange(value.numel()).reshape(value.shape) == 1, torch.nan, value)


ROWS = {
    "no known": lambda r: {k: v for k, v in r.items() if k != "known"},
    "no values": lambda r: {k: v for k, v in r.items() if k != "values"},
    "no sums": lambda r: {k: v for k, v in r.items() if k != "sums"},
    "a table more": lambda r: {**r, "more": torch.ones(6)},
    "fewer rows": lambda r: {**r, "values": r["values"][:3].clone()},
    "fewer sums": lambda r: {**r, "sums": r["sums"][:3].clone()},
    "fewer classes": lambda r: {**r, "values": r["values"][:, :3].clone()},
    "half precision": lambda r: {**r, "values": r["values"].half()},
    "sums in floats": lambda r: {**r, "sums": r["sums"].float()},
    "known in numbers": lambda r: {**r, "known": r["known"].float()},
    "known in rows": lambda r: {**r, "known": r["known"][:, None].clone()},
    "NaN": lambda r: {**r, "values": nan(r["values"])},
    "nothing": lambda r: {"known": torch.zeros(0, dtype=torch.bool)},
}
LABELS = {
    "no teacher": {"teacher": None},
    "another teacher": {"teacher": "b"},
    "no top_k": {"top_k": None},
    "another top_k": {"top_k": "2"},
    "no classes": {"classes": None},
    "classes in words": {"classes": "four"},
    "other classes": {"classes": "5"},
    "negative classes": {"classes": "-4"},
    "gigantic": {"classes": "9" * 5000},
}
BAD = {name: rows(change) for name, change in ROWS.items()} | {name: label(**of) for name, of in LABELS.items()}


@pytest.mark.parametrize("kind", BAD)
def test_of_something_else(tmp_path, kind):
    path = write(tmp_path)
    BAD[kind](path)
    refused(path, "is damaged|was written with another")


@pytest.mark.parametrize("classes", [4, -1, 2**30])
def test_classes_that_are_none(tmp_path, classes):
    path = write(tmp_path, top_k=2)
    rows(lambda r: {**r, "classes": torch.full_like(r["classes"], classes)})(path)
    refused(path, "is damaged", top_k=2)


def test_the_files_of_two_ranks_must_agree(tmp_path):
    write(tmp_path)
    other = LogitCache(str(tmp_path / "other"), top_k=None, teacher="a", rank=1)
    other(INDEX, INPUTS, lambda rows: asked(rows)[:, :3])
    other.save()
    (tmp_path / "other/logits-1.safetensors").rename(tmp_path / "logits-1.safetensors")
    (tmp_path / "other").rmdir()
    refused(tmp_path / "logits-1.safetensors", "is damaged: it does not hold the logits of 3 classes")


def test_an_empty_cache_and_what_writers_left_are_no_harm(tmp_path):
    """No sample known yet, and the unfinished file of a process that was killed."""
    path = write(tmp_path)
    rows(lambda r: {**r, "known": torch.zeros_like(r["known"])})(path)
    (tmp_path / ".logits-0.safetensors.1.2.tmp.safetensors").write_bytes(b"half")
    assert torch.equal(cache(tmp_path)(INDEX, INPUTS, asked), says(INPUTS))


def test_a_teacher_that_gives_nan_is_not_kept(tmp_path):
    made = cache(tmp_path)
    with pytest.raises(ValueError, match="The teacher gives NaN, which is not kept"):
        made(INDEX, INPUTS, lambda rows: nan(asked(rows)))
    made.save()
    assert not list(tmp_path.iterdir())
    assert torch.equal(made(INDEX, INPUTS, asked), says(INPUTS))
