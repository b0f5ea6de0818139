"""Files of a teacher's weights: each is read right, or refused with a sentence, and nothing of it runs."""

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
    drawn,
    nothing_left,
    trace,
    unless_refused,
    unreadable,
    with_a_bit_changed,
)
from helpers import Net, equal, fit, loader, trainer
from safetensors.torch import save_file
from torch import nn

from lightning_objectives._files.network import load_network
from lightning_objectives.callbacks import Distill
from lightning_objectives.distillation import VanillaKD

FORMATS = ("a.pt", "old.pt", "a.ckpt", "a.safetensors")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def frame(state):
    return {
        "state_dict": state,
        "pytorch-lightning_version": L.__version__,
        "global_step": 3,
        "hyper_parameters": {"width": 5},
    }


def write(path, state=None):
    state = net(1).state_dict() if state is None else state
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(
            frame(state) if path.suffix == ".ckpt" else state,
            path,
            _use_new_zipfile_serialization=not path.name.startswith("old"),
        )
    return path


def refused(path, sentence="", error=ValueError):
    """The file is refused by name, and the network that was given is as it was."""
    given = net()
    before, state = trace(given), {k: v.clone() for k, v in given.state_dict().items()}
    with nothing_left(path.parent), pytest.raises(error, match=sentence or None) as caught:
        load_network(given, path)
    assert path.name in str(caught.value)
    assert trace(given) == before
    assert equal(given.state_dict(), state)


@pytest.mark.parametrize("damage", DRAWN)
@pytest.mark.parametrize("name", FORMATS)
def test_damage(tmp_path, name, damage):
    path = write(tmp_path / name)
    whole, right = path.read_bytes(), net(1)

    def run(draw):
        path.write_bytes(DRAWN[damage](whole, draw))
        with nothing_left(tmp_path):
            found = unless_refused(lambda: load_network(net(), path), path)
        if found is not None:
            # Files with checksums are read as they were written, or not at all; others may have other values.
            assert equal(found, right) or name in ("old.pt", "a.safetensors")
            assert all(not value.isnan().any() for value in found.state_dict().values())

    drawn(EXAMPLES, run)


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt"])
def test_a_bit_of_a_weight(tmp_path, name):
    path = write(tmp_path / name)
    path.write_bytes(with_a_bit_changed(path.read_bytes(), net(1).state_dict()["2.weight"]))
    refused(path, "its checksums do not agree")


@pytest.mark.parametrize("name", FORMATS)
def test_what_has_no_checksums_is_read_as_it_is(tmp_path, name):
    """A safetensors file, one of before torch 1.6, and one that was saved without: the page of the site says so."""
    with_sums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / name)
    finally:
        torch.serialization.set_crc32_options(with_sums)
    path.write_bytes(with_a_bit_changed(path.read_bytes(), net(1).state_dict()["2.weight"]))
    found, right = load_network(net(), path).state_dict(), net(1).state_dict()
    assert {key for key in right if not torch.equal(found[key], right[key])} == {"2.weight"}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors"])
def test_something_else_in_its_place(tmp_path, name, kind):
    path = write(tmp_path / name)
    REPLACED[kind](path)
    refused(path)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("web_page", "It is a web page, so the download went wrong"),
        ("pointer", "run `git lfs pull`"),
        ("directory", "is a directory: give a file in it"),
        ("missing", "does not exist"),
        ("empty", "It is empty"),
    ],
)
def test_the_way_out(tmp_path, kind, sentence):
    path = write(tmp_path / "a.pt")
    REPLACED[kind](path)
    refused(path, sentence)


def test_the_wrong_suffix_is_said(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "call it .ckpt or .pt")
    save_file({"w": torch.ones(1)}, tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", "call it .safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_no_permission(suffix):
    with unreadable() as folder:
        path = write(folder / f"a{suffix}")
        path.chmod(0)
        refused(path, "Permission denied")


@pytest.mark.parametrize("where", HIDDEN)
@pytest.mark.parametrize("old", [False, True])
def test_code(tmp_path, where, old):
    made = HIDDEN[where](frame(net(1).state_dict()))
    torch.save(made, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not old)
    refused(tmp_path / "a.ckpt", "holds objects, which would run code")


def test_names_of_code_are_only_names(tmp_path, monkeypatch):
    """``_instantiator`` and ``_class_path`` are settings that Lightning once called; here they are texts."""

    class Wide(nn.Sequential):
        def __init__(self, width, **rest):
            assert not rest
            super().__init__(*net())

    monkeypatch.setattr(L, "WideForTheTest", Wide, raising=False)
    settings = {"width": 5, "_instantiator": "os.mkdir", "_class_path": "os.mkdir", "_target_": "os.mkdir"}
    torch.save({**frame(net(1).state_dict()), "hyper_parameters": settings}, tmp_path / "a.ckpt")
    with nothing_left(tmp_path):
        assert equal(load_network("lightning.WideForTheTest", tmp_path / "a.ckpt"), net(1))


def changed(**entries):
    return lambda state: {**state, **{key.replace("_", "."): value for key, value in entries.items()}}


MISMATCHED = {
    "other names": (lambda state: {f"{k}s": v for k, v in state.items()}, "keys are missing"),
    "a name less": (
        lambda state: {k: v for k, v in state.items() if k != "2.bias"},
        r"1 keys are missing \['2.bias'\]",
    ),
    "a name more": (lambda state: {**state, "3.bias": torch.ones(3)}, r"1 are unexpected \['3.bias'\]"),
    "more classes": (lambda state: {**state, "2.weight": torch.ones(7, 5), "2.bias": torch.ones(7)}, "another shape"),
    "turned": (lambda state: {**state, "2.weight": state["2.weight"].T.clone()}, r"another shape \['2.weight \(5, 3\)"),
    "whole numbers": (lambda state: {**state, "2.bias": torch.ones(3).to(torch.int8)}, r"\['2.bias torch.int8'\]"),
    "complex numbers": (lambda state: {**state, "2.bias": torch.ones(3).to(torch.complex64)}, "2.bias torch.complex64"),
    "numbers for names": (lambda state: dict(enumerate(state.values())), r"\[0, 1, 2\] are no tensors with names"),
    "sparse": (lambda state: {**state, "2.weight": state["2.weight"].to_sparse()}, r"\['2.weight'\] are no tensors"),
    "without values": (lambda state: {**state, "2.bias": torch.ones(3, device="meta")}, r"\['2.bias'\] are no tensors"),
    "a list": (lambda state: list(state.values()), "holds a list"),
    "a number": (lambda state: 3, "holds a int"),
    "nothing": (lambda state: {}, "it is empty"),
    "NaN": (lambda state: {**state, "2.bias": torch.tensor([1.0, torch.nan, 0.0])}, r"NaN or infinite.*\['2.bias'\]"),
    "infinite": (lambda state: {**state, "2.bias": torch.tensor([1.0, -torch.inf, 0])}, r"infinite.*\['2.bias'\]"),
}


@pytest.mark.parametrize("kind", MISMATCHED)
def test_of_something_else(tmp_path, kind):
    make, sentence = MISMATCHED[kind]
    torch.save(make(net(1).state_dict()), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", sentence)


@pytest.mark.parametrize(
    "settings",
    [3, ["width"], {1: 2}, {"": 1}, {"width": "many"}, torch.ones(2)],
    ids=lambda settings: str(settings)[:9],
)
def test_settings_that_are_none(tmp_path, settings):
    torch.save({**frame(net(1).state_dict()), "hyper_parameters": settings, "hparams_name": None}, tmp_path / "a.ckpt")
    with nothing_left(tmp_path), pytest.raises(ValueError, match=r"hyper_?parameters .*a.ckpt.*give the module with"):
        load_network("torch.nn.Linear", tmp_path / "a.ckpt")


SIZES = {
    "a number": torch.tensor(1.0),
    "a vector of nothing": torch.ones(0),
    "of a size that it does not hold": torch.ones(1, 1).expand(2**40, 192),
}


@pytest.mark.parametrize("kind", SIZES)
def test_the_sizes_of_a_timm_network(tmp_path, kind):
    torch.save({"head.weight": SIZES[kind]}, tmp_path / "a.pt")
    with (
        nothing_left(tmp_path),
        pytest.raises(ValueError, match=r"a.pt.* does not fit|could not be built with the sizes"),
    ):
        load_network("timm:test_vit", tmp_path / "a.pt")


def header(text, values=bytes(8)):
    return struct.pack("<Q", len(text)) + text.encode() + values


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "of 2^62 bytes": struct.pack("<Q", 2**62) + b"{}",
    "of more than the file": struct.pack("<Q", 10**6) + b"{}",
    "gigantic": header(json.dumps({"w": {**ENTRY, "shape": [2**62, 4]}})),
    "behind the end": header(json.dumps({"w": {**ENTRY, "shape": [2**40], "data_offsets": [0, 2**42]}})),
    "negative": header(json.dumps({"w": {**ENTRY, "shape": [-2]}})),
    "twice, elsewhere": header(
        f'{{"w": {json.dumps(ENTRY)}, "w": {json.dumps({**ENTRY, "data_offsets": [8, 16]})}}}', bytes(16)
    ),
    "two in one place": header(json.dumps({"w": ENTRY, "v": ENTRY})),
    "a type that is none": header(json.dumps({"w": {**ENTRY, "dtype": "F33"}})),
    "no table": header("[]"),
    "no text": header("\ud800".encode("utf-16", "surrogatepass").decode("latin1")),
    "deep": header("[" * 100_000),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_safetensors(tmp_path, kind):
    (tmp_path / "a.safetensors").write_bytes(HEADERS[kind])
    refused(tmp_path / "a.safetensors", "cannot be read: it is damaged")


def test_one_name_twice(tmp_path):
    """A name twice, over the same bytes, is one tensor."""
    entry = json.dumps(ENTRY)
    whole = header(f'{{"w": {entry}, "w": {entry}}}', struct.pack("<2f", 1, 2))
    (tmp_path / "a.safetensors").write_bytes(whole)
    one = nn.ParameterDict({"w": torch.zeros(2)})
    assert load_network(one, tmp_path / "a.safetensors").w.tolist() == [1, 2]


@pytest.mark.parametrize("damage", ["truncated", "of another network", "code", "missing"])
def test_a_training_with_a_bad_teacher_leaves_no_trace(tmp_path, damage):
    teacher, _ = fit()
    file = tmp_path / "teacher.pt"
    good = teacher.state_dict()
    made = {"of another network": Net(classes=5).state_dict(), "code": HIDDEN["beside"]({"state_dict": good})}
    torch.save(made.get(damage, good), file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
    if damage == "missing":
        file.unlink()
    module, _ = fit()
    before = trace(module)
    distill = Distill(VanillaKD(), teacher=Net(), teacher_weights=str(file))
    runner = trainer(distill)
    with nothing_left(tmp_path), pytest.raises(ValueError, match=r"teacher\.pt"):
        runner.fit(module, loader())
    assert trace(module) == before
    assert not vars(runner.strategy).get("load_checkpoint")
    torch.save(good, file)
    runner.fit(module, loader())  # with a sound file the same objects go on
    assert runner.global_step == 6
    assert trace(module) == before
