"""What each of the five systems changes, and what it leaves, in two modules that know of none of them.

``python -m benchmarks.what_changes OUT.md`` trains the module of ``examples/existing_project`` and the
``ClassificationRoutine`` of torch-uncertainty on the digits, 4 epochs at a constant learning rate: without, with each
system, and with all five. One seed, and a teacher that was not trained: the table shows that each takes effect where it
should and nowhere else, not that it helps. How far weights moved is ``|w - w'| / |w'|`` from the training with nothing.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from torch import nn

from lightning_objectives.callbacks import (
    BEMACallback,
    DualHeadKDCallback,
    LogMetrics,
    LossReweightingCallback,
    MultiSampleDropoutCallback,
    WSMCallback,
)
from lightning_objectives.data import DigitsDataModule

EPOCHS = 4
SYSTEMS: dict[str, Callable[[nn.Module], list[Any]]] = {
    "nothing": lambda teacher: [],
    "dual-head distillation": lambda teacher: [DualHeadKDCallback(teacher=teacher)],
    "multi-sample dropout": lambda teacher: [MultiSampleDropoutCallback(num_samples=8, p=0.3)],
    "loss reweighting": lambda teacher: [LossReweightingCallback(temperature=0.4)],
    "BEMA": lambda teacher: [BEMACallback(bias_power=0.4)],
    "WSM": lambda teacher: [WSMCallback(last=4, every_n_steps=10)],
    "all five": lambda teacher: [made for name in list(SYSTEMS)[1:6] for made in SYSTEMS[name](teacher)],
}


def example(width: int = 8) -> L.LightningModule:
    """The module of the example's project, from its own file, at a constant learning rate."""
    file = Path(__file__).parents[1] / "examples" / "existing_project" / "model.py"
    spec = importlib.util.spec_from_file_location("model", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["model"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Digits(width=width, decay=False)


def routine() -> L.LightningModule:
    """A module from PyPI around a network of timm's."""
    from torch_uncertainty.routines import ClassificationRoutine

    network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    recipe = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    return ClassificationRoutine(network, num_classes=10, loss=nn.CrossEntropyLoss(), optim_recipe=recipe)


MODULES = {"examples/existing_project: Digits": example, "torch-uncertainty: ClassificationRoutine": routine}


class Losses(L.Callback):
    """The loss of each batch, and the raw weights at the end of the training."""

    def __init__(self, names: list[str]) -> None:
        self.values: list[float] = []
        self.names = names

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(outputs["loss"].item())
        self.raw = flat(pl_module, self.names)


def flat(module: nn.Module, names: list[str]) -> torch.Tensor:
    parameters = dict(module.named_parameters())
    return torch.cat([parameters[name].detach().flatten().double() for name in names])


def train(make: Callable[[], L.LightningModule], callbacks: list[Any], directory: str) -> dict[str, Any]:
    L.seed_everything(0, verbose=False)
    module = make()
    names = [name for name, _ in module.named_parameters()]
    losses = Losses(names)
    keys, children = list(module.state_dict()), [name for name, _ in module.named_modules()]
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        default_root_dir=directory,
        callbacks=[*callbacks, LogMetrics(weights=["raw"]), losses],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
    )
    torch.manual_seed(1)
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=128))
    merge = next((c for c in callbacks if isinstance(c, WSMCallback)), None)
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    same = list(module.state_dict()) == keys == list(checkpoint["state_dict"])
    same = same and [name for name, _ in module.named_modules()] == children
    return {
        "losses": losses.values,
        "raw": losses.raw,
        "left": flat(module, names),
        "as found": same,
        "logged": {name for name in trainer.callback_metrics if name.startswith("train/")},
        "merge": None if merge is None else torch.load(merge.path, weights_only=True)["state_dict"].keys() == set(keys),
        "nll": trainer.callback_metrics["val/nll"].item(),
        "raw nll": trainer.callback_metrics.get("val/raw/nll", trainer.callback_metrics["val/nll"]).item(),
        "state": sorted(checkpoint["callbacks"]),
    }


def moved(weights: torch.Tensor, plain: torch.Tensor) -> str:
    distance = ((weights - plain).norm() / plain.norm()).item()
    return f"{distance:.3f}" if distance else "0 (to the bit)"


def table(make: Callable[[], L.LightningModule]) -> str:
    """One row a system."""
    head = ["with", "loss of the first batch", "raw weights moved by", "weights left moved by", "logged beside"]
    head += ["`merged.ckpt`", "val/nll raw", "val/nll of what is left", "module and keys as found"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)]
    teacher = example(width=24).eval()
    plain: dict[str, Any] = {}
    for name, build in SYSTEMS.items():
        with tempfile.TemporaryDirectory() as directory:
            run = train(make, build(teacher), directory)
        plain = plain or run
        logged = ", ".join(f"`{key}`" for key in sorted(run["logged"] - plain["logged"])) or "-"
        merged = {None: "-", True: "the plain keys", False: "other keys"}[run["merge"]]
        distances = [moved(run[which], plain["raw"]) for which in ("raw", "left")]
        cells = [name, f"{run['losses'][0]:.4f}", *distances, logged, merged]
        cells += [f"{run['raw nll']:.4f}", f"{run['nll']:.4f}", "yes" if run["as found"] else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    parts = [__doc__ or "", f"Versions: torch {torch.__version__}, lightning {L.__version__}, timm {timm.__version__}."]
    for name, make in MODULES.items():
        parts += [f"## {name}", table(make)]
    title, _, rest = parts[0].partition("\n\n")
    parts[0] = f"# What each system changes\n\n{title}\n\n{rest.strip()}"
    out.write_text("\n\n".join(parts) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
