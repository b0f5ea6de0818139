"""A story: one network on shifted data, under every adapter.

``python examples/stories/adaptation.py`` prints the tables of ``docs/stories/adaptation.md``. One core, no download.

The task, the corruptions and their strengths were chosen before the first run, and nothing was tuned to them: adapters
have their default settings. Where another setting is shown, the default stands beside it. Two rows came after the first
run, to see where its results come from: the statistics of the batch without any step, and the other kernel of LAME.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives import adaptation as a
from lightning_objectives.callbacks import AdaptAtTest

TRAINING, TEST = 1000, 512
BATCH = 64
REFERENCE_NOISE = 0.3
"""The noise on the images that the robust network of ``MixedClassifier`` is trained with."""

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]
Tests = dict[tuple[str, str], list[dict[str, float]]]
"""Of each (corruption, strength or order), the values of each seed."""
Results = dict[str, Tests]
"""Of each adapter."""


def noise(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of this standard deviation."""
    return (x + strength * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def blur(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A Gaussian of this width in pixels."""
    kernel = torch.exp(-0.5 * (torch.arange(-2, 3) / strength).square())
    kernel = kernel / kernel.sum()
    return F.conv2d(x, kernel[:, None].mul(kernel)[None, None], padding=2)


def contrast(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """This share of each difference from the image's mean is lost."""
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + (1 - strength) * (x - middle)


def brightness(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Added to each pixel, up to white."""
    return (x + strength).clamp(0, 1)


def rotation(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turned by this many degrees."""
    angle = torch.deg2rad(torch.tensor(strength))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "noise": (noise, (0.2, 0.35, 0.5)),
    "blur": (blur, (0.6, 0.8, 1.0)),
    "contrast": (contrast, (0.4, 0.6, 0.8)),
    "brightness": (brightness, (0.2, 0.4, 0.6)),
    "rotation": (rotation, (15.0, 30.0, 45.0)),
}
ADAPTERS: dict[str, Callable[[nn.Module], AdaptAtTest | None]] = {
    "network": lambda robust: None,
    "BatchNormAdaptation": lambda robust: AdaptAtTest(a.BatchNormAdaptation()),
    "BatchNormAdaptation, batch alone": lambda robust: AdaptAtTest(a.BatchNormAdaptation(prior_strength=0)),
    "TENT": lambda robust: AdaptAtTest(a.TENT()),
    "TENT, lr 0.01": lambda robust: AdaptAtTest(a.TENT(lr=0.01)),
    "SAR": lambda robust: AdaptAtTest(a.SAR()),
    "SAR, lr 0.01, recovery 0.02": lambda robust: AdaptAtTest(a.SAR(lr=0.01, recovery=0.02)),
    "LAME": lambda robust: AdaptAtTest(a.LAME()),
    "LAME, knn": lambda robust: AdaptAtTest(a.LAME(affinity="knn")),
    "MixedClassifier, alpha 0.5": lambda robust: AdaptAtTest(a.MixedClassifier(alpha=0.5), reference=robust),
    "FrechetMeanPredictor": lambda robust: AdaptAtTest(
        a.FrechetMeanPredictor(distances=[[abs(i - j) for j in range(10)] for i in range(10)])
    ),
}
WITHOUT_NLL = ("FrechetMeanPredictor",)
"""Their logits are squared distances, so that a likelihood of them means nothing."""


class Digits(L.LightningModule):
    """A small network with BatchNorm. It knows of no adapter."""

    def __init__(self, augmented: float = 0.0) -> None:
        super().__init__()
        self.augmented = augmented
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return self.model(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: D102
        images, target = batch
        return F.cross_entropy(self(images + self.augmented * torch.randn_like(images)), target)

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: D102
        images, target = batch
        logits = self(images)
        digit = logits.argmax(1)
        values = {
            "accuracy": (digit == target).float().mean(),
            "NLL": F.cross_entropy(logits, target),
            "squared": (digit - target).square().float().mean(),
        }
        self.log_dict(values, batch_size=len(target))

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def trainer(callbacks: list[L.Callback], epochs: int = 1) -> L.Trainer:
    """One that writes and prints nothing."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, callbacks=callbacks, **quiet)


def trained(x: Tensor, y: Tensor, *, seed: int, epochs: int, augmented: float = 0.0) -> Digits:
    """A network of its own."""
    torch.manual_seed(seed)
    module = Digits(augmented)
    trainer([], epochs).fit(module, DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True))
    return module


def shifted(x: Tensor, y: Tensor, seed: int) -> dict[tuple[str, str], DataLoader]:
    """The tests: without and with each corruption, and some in the order of the digits."""
    by_digit = y.argsort(stable=True)
    tests = {("clean", ""): (x, y), ("clean", "sorted"): (x[by_digit], y[by_digit])}
    for name, (corrupt, strengths) in CORRUPTIONS.items():
        for level, strength in enumerate(strengths, 1):
            images = corrupt(x, strength, torch.Generator().manual_seed(seed))
            tests[name, str(level)] = images, y
            if level == 2:
                tests[name, "sorted"] = images[by_digit], y[by_digit]
    return {test: DataLoader(TensorDataset(*rows), batch_size=BATCH) for test, rows in tests.items()}


def story(*, seeds: int = 3, epochs: int = 20, rows: int = TEST) -> Results:
    """Every adapter on every test, with a network of each seed."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    results: Results = {}
    for seed in range(seeds):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        fit, test = order[:TRAINING], order[TRAINING : TRAINING + rows]
        module = trained(x[fit], y[fit], seed=seed, epochs=epochs)
        robust = trained(x[fit], y[fit], seed=seed + seeds, epochs=epochs, augmented=REFERENCE_NOISE)
        tests = shifted(x[test], y[test], seed)
        for name, make in ADAPTERS.items():
            callback = make(robust.model)
            add(results.setdefault(name, {}), tests, trainer([callback] if callback else []), module)
        add(results.setdefault("the robust network alone", {}), tests, trainer([]), robust)
    return results


def add(found: Tests, tests: dict[tuple[str, str], DataLoader], tester: L.Trainer, module: Digits) -> None:
    """Test on all loaders; the adaptation begins anew with each."""
    for test, logged in zip(tests, tester.test(module, list(tests.values()), verbose=False)):
        values = {name.partition("/")[0]: value for name, value in logged.items()}
        found.setdefault(test, []).append(values)


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def over_strengths(found: Tests, name: str, value: str) -> list[float]:
    """The mean over the strengths, of each seed."""
    levels = [runs for (corruption, level), runs in found.items() if corruption == name and level != "sorted"]
    return [mean(run[value] for run in seed) for seed in zip(*levels)]


def table(results: Results, value: str) -> str:
    """A row for each adapter, a column for each corruption: the mean over the strengths."""
    names = ["clean", *CORRUPTIONS]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for adapter, found in results.items():
        meaningless = value == "NLL" and adapter in WITHOUT_NLL
        cells = ["-" if meaningless else cell(over_strengths(found, name, value)) for name in names]
        lines.append(f"| {adapter} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def strength_table(results: Results) -> str:
    """The accuracy at each strength, and the mean over the seeds."""
    columns = [(name, str(level)) for name in CORRUPTIONS for level in (1, 2, 3)]
    lines = ["| | " + " | ".join(" ".join(column) for column in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for adapter, found in results.items():
        cells = [f"{mean(run['accuracy'] for run in found[column]):.2f}" for column in columns]
        lines.append(f"| {adapter} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sorted_table(results: Results) -> str:
    """The accuracy if the digits come in their order, at the second strength."""
    names = ["clean", *CORRUPTIONS]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for adapter, found in results.items():
        cells = [cell([run["accuracy"] for run in found[name, "sorted"]]) for name in names]
        lines.append(f"| {adapter} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)  # sums of floats depend on how many threads share them
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*many workers|.*the logging interval|.*LeafSpec")
    results = story()
    titles = {
        "accuracy": "accuracy",
        "NLL": "NLL",
        "squared": "squared distance between the predicted digit and the true",
    }
    for value, title in titles.items():
        print(f"{title}, mean over the strengths\n\n{table(results, value)}\n")
    print(f"accuracy at each strength\n\n{strength_table(results)}\n")
    print(f"accuracy, the digits in their order\n\n{sorted_table(results)}")


if __name__ == "__main__":
    main()
