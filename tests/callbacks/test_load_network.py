"""A teacher by name, by class and from files, and what is refused."""

import os
import subprocess
import sys

import lightning as L
import pytest
import timm
import torch
from helpers import Net, equal, fit
from safetensors.torch import save_file
from torch import nn

from lightning_objectives._files.network import load_network, read_weights


class Sized(L.LightningModule):
    """A module with hyperparameters of its own."""

    def __init__(self, width, classes=3, **rest):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Linear(width, classes))


class Runs:
    """What a malicious pickle does when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_a_module_is_copied():
    given = net()
    taken = load_network(given)
    assert taken is not given
    assert equal(taken, given)
    nn.init.zeros_(taken[0].weight)
    assert given[0].weight.any()


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "ckpt"])
@pytest.mark.parametrize("prefix", ["", "model.", "student.net."])
def test_a_file_for_a_module(tmp_path, suffix, prefix):
    trained, file = net(1), tmp_path / f"a.{suffix}"
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    if prefix:
        state["loss.weight"] = torch.ones(3)
    if suffix == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == "ckpt" else state, file)
    assert equal(load_network(net(), file), trained)
    assert equal(load_network(net(), str(file)), trained)


def test_a_timm_network_of_a_file_has_its_sizes(tmp_path):
    trained = timm.create_model("test_vit", num_classes=7, in_chans=1)
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"net.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "a.ckpt")
    for name in ("test_vit", "timm:test_vit"):
        for file in ("a.safetensors", "a.ckpt"):
            found = load_network(name, tmp_path / file)
            assert equal(found, trained)
            assert found.num_classes == 7


def test_a_class_with_the_hyperparameters_of_a_lightning_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(L, "SizedForTheTest", Sized, raising=False)
    trained = Sized(width=6, extra=1)
    file = tmp_path / "a.ckpt"
    checkpoint = {
        "state_dict": trained.state_dict(),
        "hyper_parameters": {**trained.hparams, "_instantiator": "os.abort"},
    }
    torch.save(checkpoint | {"hparams_name": "kwargs"}, file)
    found = load_network("lightning.SizedForTheTest", file)
    assert equal(found, trained)
    assert dict(found.hparams) == {"width": 6, "classes": 3, "extra": 1}


def test_a_checkpoint_of_a_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(L, "NetForTheTest", Net, raising=False)
    trained, runner = fit()
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert equal(load_network("lightning.NetForTheTest", tmp_path / "a.ckpt"), trained)


def test_what_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": net().state_dict(), "extra": Runs()}, "bad.ckpt")
    with pytest.raises(ValueError, match="holds objects, which would run code"):
        load_network(net(), "bad.ckpt")
    assert not (tmp_path / "ran").exists()
    torch.load("bad.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()  # the file is as bad as it claims


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damaged_and_missing_files(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    with pytest.raises(ValueError, match="does not exist"):
        read_weights(file)
    save_file(net().state_dict(), file) if suffix == "safetensors" else torch.save(net().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read: it is damaged"):
        read_weights(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read: it is damaged"):
        read_weights(file)


def without(state):
    return {k: v for k, v in state.items() if k != "2.bias"}


MISMATCHES = {
    "missing": (without, r"1 keys are missing \['2.bias'\]"),
    "unexpected": (lambda state: {**state, "3.bias": torch.ones(1)}, r"1 are unexpected \['3.bias'\]"),
    "shape": (lambda state: {**state, "2.bias": torch.ones(4)}, r"1 have another shape \['2.bias \(4,\)'\]"),
    "two prefixes": (
        lambda state: {p + k: v for p in ("a.", "b.") for k, v in state.items()},
        r"Several prefixes fit: \['a.', 'b.'\]",
    ),
    "prefix, missing": (lambda state: {"a." + k: v for k, v in without(state).items()}, "6 keys are missing|missing"),
    "no state": (lambda state: {"a": 1}, r"is no state dict: \['a'\] are no tensors"),
    "empty": (lambda state: {}, "is no state dict"),
    "no dictionary": (lambda state: torch.ones(1), "holds a Tensor, not a state dict"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, name):
    make, sentence = MISMATCHES[name]
    torch.save(make(net().state_dict()), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=sentence):
        load_network(net(), tmp_path / "a.pt")


def test_random_weights_and_unknown_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'resnet' is no timm model \(close: \["):
        load_network("resnet")
    with pytest.raises(ValueError, match="random ones teach nothing"):
        load_network("resnet200")  # timm has none for it
    with pytest.raises(ValueError, match="would have random weights"):
        load_network("torch.nn.Linear")
    torch.save(net().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="neither a timm model nor the path of a class"):
        load_network("no.such.Thing", tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is no class of modules"):
        load_network("torch.nn.functional", tmp_path / "a.pt")
    with pytest.raises(ValueError, match="could not be built with the hyperparameters"):
        load_network("torch.nn.Linear", tmp_path / "a.pt")

    def offline(name, pretrained, **kwargs):
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"could not be loaded \(OSError: no route to the hub\)"):
        load_network("timm:resnet18")


@pytest.mark.processes
def test_timm_is_imported_only_for_a_network_that_may_be_one_of_timm():
    """Importing timm takes most of a second, which users of other networks need not wait for."""
    code = """
import sys, torch
from lightning_objectives.callbacks import Distill
from lightning_objectives._files.network import load_network
load_network(torch.nn.Linear(1, 1))
assert "timm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
