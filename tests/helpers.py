"""Small modules and data for the tests."""

import importlib.util
import sys
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MODEL = Path(__file__).parents[1] / "examples" / "existing_project" / "model.py"


def digits():
    """The class of the example's project, from its own file."""
    spec = importlib.util.spec_from_file_location("model", MODEL)
    sys.modules["model"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Digits


def data(n=24, classes=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    return TensorDataset(x, torch.randint(classes, (n,), generator=generator))


def loader(batch_size=8, shuffle=False, **kwargs):
    return DataLoader(data(**kwargs), batch_size=batch_size, shuffle=shuffle)


class Net(L.LightningModule):
    """A user's module that knows nothing of plug-ins."""

    def __init__(self, dropout=0.0, classes=3, dtype=torch.float32):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6, dtype=dtype), nn.ReLU(), nn.Dropout(dropout))
        self.fc = nn.Linear(6, classes, dtype=dtype)
        self.losses = []

    def forward(self, x):
        return self.fc(self.backbone(x))

    def criterion(self, logits, y):
        return F.cross_entropy(logits, y)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self(x), y)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(*callbacks, **kwargs):
    defaults = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs})


def fit(*callbacks, net=None, train=None, seed=0, val=None, **kwargs):
    """Train a net from a seed; returns the net and the trainer."""
    L.seed_everything(seed, verbose=False)
    net = net() if callable(net) and not isinstance(net, nn.Module) else net if net is not None else Net()
    runner = trainer(*callbacks, **kwargs)
    runner.fit(net, loader() if train is None else train, val)
    return net, runner


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(a, b):
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
