"""The snippets on the pages of the methods run: as callback, mixin, plain PyTorch, YAML and command line."""

import copy
import inspect
import re
import shlex
import sys
import textwrap
import types
from collections import OrderedDict
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_objectives as lo
from docs.cards import cards
from docs.snippets import built, tabs
from lightning_objectives import cli
from lightning_objectives.kinds import Combination
from lightning_objectives.testing.signals import example_signals, require_grad

CARDS = [pytest.param(card, id=card.name) for card in cards()]
CLASSES = 3
ROOT = Path(__file__).parents[1]


class Block(nn.Module):
    """A residual block, as torchvision and timm have it."""

    def __init__(self, width):
        super().__init__()
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return (x + self.bn2(self.conv2(x))).relu()


def backbone(width=4):
    """Convolutions with BatchNorm and dropout, as the layers that the snippets name."""
    layer = nn.Sequential(Block(width), nn.Dropout(0.1))
    parts = {"conv": nn.Conv2d(3, width, 1), "layer1": layer, "layer4": copy.deepcopy(layer)}
    return nn.Sequential(OrderedDict(**parts, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


class Net(L.LightningModule):
    """A user's module."""

    loss = staticmethod(F.cross_entropy)
    outputs = CLASSES

    def __init__(self):
        super().__init__()
        self.backbone, self.fc = backbone(), nn.Linear(4, self.outputs)

    def forward(self, x):
        return self.fc(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self(x), y)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.log("loss", self.loss(self(x), y))

    test_step = validation_step

    def objective_group(self, batch):
        return torch.arange(len(batch[0])) % 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TwoTasks(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        return F.cross_entropy(logits, y) + F.mse_loss(logits, F.one_hot(y, CLASSES).float())


class Segmenter(Net):
    def __init__(self):
        super().__init__()
        self.backbone.pool = self.backbone.flatten = nn.Identity()
        self.fc = nn.Conv2d(4, CLASSES, 1)


class Labels(Net):
    loss = staticmethod(lambda logits, y: F.binary_cross_entropy_with_logits(logits, y))


class Binary(Labels):
    outputs = 1


class Regression(Net):
    loss = staticmethod(F.mse_loss)
    outputs = 1


class Distribution(Net):
    loss = staticmethod(lambda logits, y: F.kl_div(logits.log_softmax(1), y, reduction="batchmean"))


def module_of(card):
    """A module of a problem that the method is for."""
    if issubclass(card.cls, Combination):
        return TwoTasks
    if getattr(card.cls, "unit", "") == "sample":
        return Segmenter
    problems = getattr(card.cls, "problems", ()) or ("classes",)
    words = {"labels": Labels, "binary": Binary, "regression": Regression, "distribution": Distribution}
    return Net if "classes" in problems else words[problems[0]]


def target_of(module, rows):
    if module is Segmenter:
        return torch.randint(CLASSES, (rows, 4, 4))
    if issubclass(module, (Labels, Regression)):
        return torch.randint(2, (rows, module.outputs)).float()
    return torch.rand(rows, CLASSES).softmax(1) if module is Distribution else torch.arange(rows) % CLASSES


class Quick(L.Trainer):
    """A trainer as the snippets make it, for a training of two short epochs without files and bars."""

    def __init__(self, max_epochs=2, **settings):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
        super().__init__(max_epochs=min(max_epochs, 2), **quiet, **settings)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the snippets leave to the reader: the module, its data and the values in a step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(L, "Trainer", Quick)

    def names(card):
        torch.manual_seed(0)
        module = module_of(card)
        train_set = TensorDataset(torch.randn(12, 3, 4, 4), target_of(module, 12))
        loader = DataLoader(train_set, batch_size=6)
        model, network = module(), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES))
        teacher = nn.Sequential(OrderedDict(backbone(6).named_children(), fc=nn.Linear(6, CLASSES)))
        signals = require_grad(example_signals(), "logits", "features", "losses", "hidden")
        signals = {name: value.float() if _is_double(value) else value for name, value in signals.items()}
        signals |= {"network": network, "inputs": torch.randn(6, 3, 4, 4)} if card.room not in RAW else {}
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        logits = network(torch.randn(6, 3, 4, 4))
        terms = torch.stack([F.cross_entropy(logits, torch.arange(6) % 3), logits.square().mean()])
        loaders = dict.fromkeys(["train_loader", "val_loader", "test_loader", "other_loader"], loader)
        values = {"val_logits": torch.randn(60, 3), "val_target": torch.arange(60) % 3, "loader": torch.arange(6) % 2}
        values |= {"terms": terms, "loss": logits.square().mean(), "score": lambda state: 0.0, "gradient": dict}
        return {
            **{"__name__": "snippet", "YourModule": module, "model": model, "teacher": teacher, "train_set": train_set},
            **signals,
            **{"optimizer": optimizer, **loaders, **values},
        }

    return names


RAW = ("regularizers", "losses", "weighting", "distillation")
"""The rooms whose methods get the network of the example signals, which they were written for."""


def _is_double(value):
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64 and value.dim() == 0


def snippet(card, tab):
    found = tabs(card).get(tab, ("", ""))[1]
    if not found:
        pytest.skip(f"{card.name} has no {tab}")
    return found


def test_every_method_has_a_snippet():
    """Otherwise its page would not say how to use it."""
    assert not [card.name for card in cards() if not {"Callback", "Plain PyTorch"} & tabs(card).keys()]


@pytest.mark.parametrize("card", [c for c in CARDS if "Callback" in tabs(c.values[0])])
def test_as_a_callback(card, names):
    exec(compile(snippet(card, "Callback"), card.page, "exec"), names(card))


@pytest.mark.parametrize("card", [c for c in CARDS if "Mixin" in tabs(c.values[0])])
def test_as_a_mixin(card, names):
    """The module brings what the callback's snippet says; the callback's own snippet trains with it."""
    given = names(card)
    exec(compile(snippet(card, "Mixin"), card.page, "exec"), given)
    found = repr([getattr(c, "carried", c) for c in given["Net"]().configure_callbacks()])
    assert repr(eval(built(card), {"lo": lo})) in found


@pytest.mark.parametrize("card", [c for c in CARDS if "Plain PyTorch" in tabs(c.values[0])])
def test_in_plain_pytorch(card, names):
    given = names(card)
    files_for(card)
    exec(compile(snippet(card, "Plain PyTorch"), card.page, "exec"), given)


@pytest.fixture(scope="module")
def parser():
    """Lightning's own way from YAML to callbacks, made once."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--trainer.callbacks", type=list[L.Callback])
    parser.add_subclass_arguments(torch.optim.Optimizer, "optimizer", skip={"params"}, required=False)
    schedules = torch.optim.lr_scheduler.LRScheduler
    parser.add_subclass_arguments(schedules, "lr_scheduler", skip={"optimizer"}, required=False)
    return parser


@pytest.mark.parametrize("card", [c for c in CARDS if "YAML" in tabs(c.values[0])])
def test_in_yaml(card, parser):
    read = parser.parse_object(yaml.safe_load(snippet(card, "YAML")))
    if card.room == "schedules":
        assert read.lr_scheduler.class_path.endswith(f".{card.name}")
        return
    (first, *_) = parser.instantiate_classes(read).trainer.callbacks
    method = next(iter(inspect.signature(type(first)).parameters))
    read, expected = getattr(first, method), eval(built(card), {"lo": lo})
    assert type(read) is type(expected)
    assert not hasattr(expected, "settings") or read.settings() == expected.settings()


def files_for(card):
    """The checkpoints that the snippets of merges name."""
    if card.room != "merging":
        return
    state = nn.Linear(3, 2).state_dict()
    for step, name in enumerate(("base", "a", "b")):
        weights = {key: value + torch.rand_like(value) for key, value in state.items()}
        torch.save(
            {"state_dict": weights, "global_step": step, "pytorch-lightning_version": L.__version__}, f"{name}.ckpt"
        )
        save_file(importance_of(card, weights), f"{name}.importance.safetensors")


def importance_of(card, weights):
    """Positive numbers, or Gram matrices for a merge that takes these."""
    shapes = {key: eval(built(card), {"lo": lo}).importance_shape(value.shape) for key, value in weights.items()}
    return {
        key: value + 2 if shapes[key] == value.shape else value.T @ value
        for key, value in weights.items()
        if shapes[key] is not None
    }


@pytest.mark.parametrize("card", [c for c in CARDS if "Command line" in tabs(c.values[0])])
def test_on_the_command_line(card, names, monkeypatch, tmp_path):
    names(card)
    files_for(card)
    project = types.ModuleType("my_project")
    project.score, project.gradient = lambda state: 0.0, dict
    monkeypatch.setitem(sys.modules, "my_project", project)
    cli.main(shlex.split(snippet(card, "Command line"))[1:])
    assert (tmp_path / "merged.ckpt").exists()


GUIDES = sorted([*(ROOT / "docs" / "guides").glob("*.md"), ROOT / "docs" / "quickstart.md", ROOT / "docs" / "index.md"])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_code_of_a_guide_runs(page, names, monkeypatch):
    given = names(next(card for card in cards() if card.name == "PCGrad"))
    given |= {"multi_task_model": given["model"], "model": Net(), "YourModule": Net, "nn": nn, "torch": torch}
    files_for(next(card for card in cards() if card.room == "merging"))
    monkeypatch.setitem(
        sys.modules, "snippet", module := types.ModuleType("snippet")
    )  # where a pickle looks for a class
    vars(module).update(given)
    for block in re.findall(r"^( *)```python\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(textwrap.dedent(block[1]), str(page), "exec"), vars(module))
