"""A module, its data and what a plug-in is given: what the conditions train."""

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_objectives.data.with_index import with_index

CLASSES, SHAPE = 3, (3, 2, 2)


class Classifier(L.LightningModule):
    """A user's module that knows the groups of its samples, and else nothing of plug-ins.

    It has BatchNorm, dropout, an integer buffer and one criterion.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))
        self.fc = nn.Linear(6, CLASSES)
        self.register_buffer("table", torch.arange(5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C)."""
        logits: Tensor = self.fc(self.backbone(x))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss."""
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss."""
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        x, y = batch
        self.log("test_loss", F.cross_entropy(self(x), y))

    def objective_group(self, batch: Any) -> Tensor:
        """The group of each sample (N,), for methods that ask for it."""
        groups: Tensor = batch[1] % 2
        return groups

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits (N, C)."""
        logits: Tensor = self(batch[0])
        return logits

    def configure_optimizers(self) -> Any:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def images() -> Dataset[Any]:
    """22 small images of three classes: the last of three batches is smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(22, *SHAPE, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (22,), generator=generator))


def teacher() -> nn.Module:
    """A network of the same classes, trained or not."""
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


SETTINGS: Mapping[str, Callable[[], Any]] = {
    "teacher": teacher,
    "layers": lambda: "backbone.2",
    "teacher_layers": lambda: "1",
    "changed_layers": lambda: "backbone.[12]",
}
"""What plug-ins are given by name, for :class:`Classifier`."""


class Losses(L.Callback):
    """Keeps the loss of each training batch, and what the user's optimizers brought with them."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.hooks: list[dict[str, int]] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the optimizers."""
        self.hooks = hooks_of(trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Copy it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self.values.append(None if loss is None else float(loss))


def hooks_of(optimizers: Iterable[Any]) -> list[dict[str, int]]:
    """How many hooks of each kind every optimizer has."""
    return [{name: len(own) for name, own in vars(o).items() if name.endswith("_hooks")} for o in optimizers]


@dataclass
class Outcome:
    """The weights and the losses of a training."""

    weights: dict[str, Any]
    losses: list[Any]


@dataclass
class Run:
    """What is left of a training."""

    trainer: Any
    module: L.LightningModule
    callbacks: list[Any]
    losses: list[float]

    @property
    def weights(self) -> dict[str, Any]:
        """The module's state after the fit."""
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    @property
    def outcome(self) -> Outcome:
        """What can be compared with another training."""
        return Outcome(self.weights, list(self.losses))


@dataclass(kw_only=True)
class Case:
    """What the conditions train, and the settings that plug-ins are given by name.

    Args:
        module: makes the module, the same at each call after ``torch.manual_seed``.
        data: makes the data set, of ``(inputs, class)``.
        settings: what a callback's constructor asks for by name and has no default for, by name; and ``layers`` and
            ``teacher_layers``, for methods that compare hidden layers.
        batch_size: of the loaders.
    """

    module: Callable[[], L.LightningModule] = Classifier
    data: Callable[[], Dataset[Any]] = images
    settings: Mapping[str, Callable[[], Any]] = field(default_factory=lambda: dict(SETTINGS))
    batch_size: int = 8
    trainers: list[L.Trainer] = field(default_factory=list, repr=False)
    """All trainers made, in order."""
    numbers: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False)
    root: Path | None = field(default=None, init=False, repr=False)
    """Holds the directories of this case, once there is one."""

    def loader(self, **kwargs: Any) -> DataLoader[Any]:
        """The data in their order."""
        return DataLoader(self.data(), **{"batch_size": self.batch_size, **kwargs})

    def loader_for(self, callbacks: list[Any]) -> DataLoader[Any]:
        """The same, with the index of each sample for callbacks that ask for it."""
        asked = any("index" in getattr(c, "signals", ()) or getattr(c, "remembers", False) for c in callbacks)
        return DataLoader(with_index(self.data()), batch_size=self.batch_size) if asked else self.loader()

    def folder(self) -> Path:
        """A directory of its own, deleted with this case; whoever writes to it makes it."""
        if self.root is None:
            self.root = Path(tempfile.mkdtemp(prefix="conformance-"))
            weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        return self.root / str(next(self.numbers))

    def trainer(self, *callbacks: Any, **kwargs: Any) -> L.Trainer:
        """A quiet trainer on the CPU whose files go to a :meth:`folder`."""
        defaults: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False}
        defaults |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        defaults |= {"log_every_n_steps": 50, "num_sanity_val_steps": 0, "limit_val_batches": 2}
        if "default_root_dir" not in kwargs:
            kwargs["default_root_dir"] = self.folder()
        self.trainers.append(L.Trainer(callbacks=list(callbacks), **{**defaults, **kwargs}))
        return self.trainers[-1]

    def fit(
        self,
        callbacks: list[Any],
        *,
        module: Callable[[], L.LightningModule] | L.LightningModule | None = None,
        train: Any = None,
        val: Any = None,
        ckpt_path: Any = None,
        seed: int = 0,
        **trainer: Any,
    ) -> Run:
        """Train a module, a new one of this case by default, from a seed.

        ``train`` and ``val`` are loaders or data modules, or functions that make them of this case; the one of
        ``train`` is also given the callbacks.
        """
        L.seed_everything(seed, verbose=False)
        net = module if isinstance(module, L.LightningModule) else (module or self.module)()
        losses = Losses()
        runner = self.trainer(*callbacks, losses, **trainer)
        torch.manual_seed(seed)  # what the callbacks and the module drew when they were made shifts nothing
        train = self.loader_for(callbacks) if train is None else train(self, callbacks) if callable(train) else train
        val = self.loader() if val is None else val(self) if callable(val) else val
        runner.fit(net, train, val or None, ckpt_path=ckpt_path)
        return Run(runner, net, callbacks, losses.values)
