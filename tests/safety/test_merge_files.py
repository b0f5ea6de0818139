"""Files to merge: every one of them is sound and of one network, or there is no output and nothing of it runs."""

import json
import struct

import lightning as L
import pytest
import torch
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
from safetensors.torch import load_file, save_file

from lightning_objectives.cli import main
from lightning_objectives.merging import WSM, merge_checkpoints

FORMATS = (".pt", ".ckpt", ".safetensors")


def state(value):
    return {"w": torch.full((2, 3), float(value)), "b": torch.arange(3.0) + value, "n": torch.tensor(int(value))}


def frame(weights, step):
    return {"state_dict": weights, "pytorch-lightning_version": L.__version__, "global_step": step}


def write(folder, suffix, **odd):
    """Three checkpoints, of which one may have other weights; returns their paths, oldest first."""
    paths = [folder / f"step={step}{suffix}" for step in (1, 2, 3)]
    for step, path in enumerate(paths, start=1):
        weights = odd.get(f"step{step}", state(step))
        if suffix == ".safetensors":
            save_file(weights, path)
        else:
            torch.save(frame(weights, step) if suffix == ".ckpt" else weights, path)
    return paths


def read(path):
    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return found.get("state_dict", found)


def refused(paths, sentence="", named=None, suffix=".pt"):
    """No merge in any format, also not over one that is there, and the bad file is named."""
    folder = paths[0].parent
    for out in (folder / f"new/merged{suffix}", folder / f"old{suffix}"):
        if out.stem == "old":
            out.write_bytes(b"of before")
        with nothing_left(folder), pytest.raises(ValueError, match=sentence or None) as caught:
            merge_checkpoints(paths, WSM(shape="linear"), out)
        assert (named or paths[1]).name in str(caught.value)


@pytest.mark.parametrize("damage", DRAWN)
@pytest.mark.parametrize("suffix", FORMATS)
def test_damage(tmp_path, suffix, damage):
    paths = write(tmp_path, suffix)
    out = tmp_path / f"merged{suffix}"
    expected = read(merge_checkpoints(paths, WSM(shape="linear"), out))
    out.unlink()
    whole = paths[1].read_bytes()

    def run(draw):
        paths[1].write_bytes(DRAWN[damage](whole, draw))
        before = contents(tmp_path)
        if unless_refused(lambda: merge_checkpoints(paths, WSM(shape="linear"), out), paths[1]):
            found = read(out)
            out.unlink()
            form = {key: (value.dtype, value.shape) for key, value in found.items()}
            assert form == {key: (value.dtype, value.shape) for key, value in expected.items()}
            if suffix != ".safetensors":  # whose files have no checksums
                assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert contents(tmp_path) == before

    drawn(EXAMPLES, run)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_bit_of_a_weight(tmp_path, suffix):
    paths = write(tmp_path, suffix)
    paths[1].write_bytes(with_a_bit_changed(paths[1].read_bytes(), state(2)["b"]))
    refused(paths, "its checksums do not agree", suffix=suffix)


HINTS = {"empty": "It is empty", "web_page": "It is a web page", "pointer": "It is a pointer of Git LFS"}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("suffix", FORMATS)
def test_something_else_in_its_place(tmp_path, suffix, kind):
    paths = write(tmp_path, suffix)
    REPLACED[kind](paths[1])
    other = "It is a zip archive" if suffix == ".safetensors" else "It is a safetensors file"
    refused(paths, (HINTS | {"other_format": other}).get(kind, ""), suffix=suffix)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_no_permission(suffix):
    with unreadable() as folder:
        paths = write(folder, suffix)
        paths[1].chmod(0)
        refused(paths, "Permission denied", suffix=suffix)


@pytest.mark.parametrize("where", HIDDEN)
def test_code(tmp_path, where):
    paths = write(tmp_path, ".ckpt")
    torch.save(HIDDEN[where](frame(state(2), 2)), paths[1])
    refused(paths, "could run code", suffix=".ckpt")


def but(**entries):
    return {**state(2), **entries}


def number(value):
    return but(w=torch.tensor([[1.0, value, 0.0], [0.0, 0.0, 0.0]]))


MISMATCHED = {
    "other names": ({f"{k}s": v for k, v in state(2).items()}, "does not match"),
    "a name less": ({k: v for k, v in state(2).items() if k != "b"}, r"lacks \['b'\]"),
    "a name more": (but(c=torch.ones(1)), r"has besides \['c'\]"),
    "another shape": (but(b=torch.ones(5)), r"b is torch.float32 \(5,\)"),
    "turned": (but(w=torch.ones(3, 2)), r"w is torch.float32 \(3, 2\)"),
    "whole numbers": (but(b=torch.ones(3).long()), "b is torch.int64"),
    "complex numbers": (but(b=torch.ones(3).to(torch.complex64)), "b is torch.complex64"),
    "NaN": (number(torch.nan), "w is NaN or infinite in .*Leave this file out"),
    "infinite": (number(torch.inf), "w is NaN or infinite in"),
    "minus infinite": (number(-torch.inf), "w is NaN or infinite in"),
}


@pytest.mark.parametrize("kind", MISMATCHED)
@pytest.mark.parametrize("suffix", FORMATS)
def test_of_something_else(tmp_path, suffix, kind):
    odd, sentence = MISMATCHED[kind]
    refused(write(tmp_path, suffix, step2=odd), sentence, suffix=suffix)


ODD = {
    "numbers for names": ({0: torch.ones(1)}, r"cannot be merged or exported: \[0\]"),
    "sparse": (but(w=torch.ones(2, 3).to_sparse()), r"cannot be merged or exported: \['w'\]"),
    "without values": (but(w=torch.ones(2, 3, device="meta")), r"cannot be merged or exported: \['w'\]"),
    "a name twice": (but(**{"_orig_mod.w": torch.ones(2, 3)}), "has both 'w' and '_orig_mod.w'"),
    "nothing": ({}, "holds no tensors"),
    "settings": ({"lr": 1.0}, "entries that are no tensors"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_no_network_has(tmp_path, kind):
    odd, sentence = ODD[kind]
    refused(write(tmp_path, ".pt", step2=odd), sentence)


@pytest.mark.parametrize("newest", [torch.nan, torch.inf])
def test_a_training_that_came_to_nothing(tmp_path, newest):
    """The newest is the one to blame; NaN in all files is no mask."""
    lost = {"w": torch.full((2, 3), newest)}
    paths = write(tmp_path, ".pt", step3=state(3) | lost)
    refused(paths, "NaN or infinite", named=paths[2])
    paths = write(tmp_path, ".pt", **{f"step{i}": state(i) | {"w": torch.full((2, 3), torch.nan)} for i in (1, 2, 3)})
    refused(paths, "NaN or infinite", named=paths[0])


def test_infinities_that_all_have_are_a_mask(tmp_path):
    """The finite entries beside them are merged: by hand, the mean of 1, 2 and 6."""
    values = {f"step{i}": {"w": torch.tensor([-torch.inf, x])} for i, x in ((1, 1.0), (2, 2.0), (3, 6.0))}
    paths = write(tmp_path, ".pt", **values)
    merged = merge_checkpoints(paths, WSM(shape="linear"), tmp_path / "m.pt")
    assert read(merged)["w"].tolist() == [-torch.inf, 3.0]
    (tmp_path / "m.pt").unlink()
    for value in (torch.nan, torch.inf, 0.0):  # one of another sign, or none: each of the others may be wrong too
        paths = write(tmp_path, ".pt", **{**values, "step2": {"w": torch.tensor([value, 1.0])}})
        refused(paths, "NaN or infinite", named=paths[0])


def test_too_large_for_its_type(tmp_path):
    """-3e38 and 3e38 are finite, and so is their mean, but not their difference."""
    odd = {f"step{i}": {"w": torch.tensor([x])} for i, x in ((1, -3e38), (2, -3e38), (3, 3e38))}
    refused(write(tmp_path, ".pt", **odd), "too large for its type")


def test_the_order_of_the_list_does_not_matter(tmp_path):
    paths = write(tmp_path, ".ckpt")
    first = merge_checkpoints(paths, WSM(), tmp_path / "a.pt")
    second = merge_checkpoints([paths[2], paths[0], paths[1]], WSM(), tmp_path / "b.pt")
    assert all(torch.equal(read(first)[key], read(second)[key]) for key in state(1))


@pytest.mark.parametrize("step", [1, 3])
def test_a_step_that_two_claim(tmp_path, step):
    paths = write(tmp_path, ".ckpt")
    torch.save(frame(state(2), step), paths[1])
    refused(paths, "of the same steps", suffix=".ckpt")


LIES = {
    "gigantic": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
    "too large to count": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]},
    "of another size": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
    "of no type": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
}


@pytest.mark.parametrize("kind", LIES)
def test_headers_of_safetensors(tmp_path, kind):
    paths = write(tmp_path, ".safetensors")
    text = json.dumps({"w": LIES[kind]}).encode()
    paths[1].write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(paths, "truncated or no safetensors file", suffix=".safetensors")


@pytest.mark.parametrize("kind", REPLACED)
def test_the_command(tmp_path, kind, capsys):
    """Status 2 and the sentence, no traceback."""
    paths = write(tmp_path, ".pt")
    REPLACED[kind](paths[1])
    with nothing_left(tmp_path), pytest.raises(SystemExit) as ended:
        main(["merge", *map(str, paths), "-o", str(tmp_path / "m.pt")])
    assert ended.value.code == 2
    assert str(paths[1]) in capsys.readouterr().err
