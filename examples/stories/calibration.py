"""A story: an overconfident network, calibrated by every calibrator, and the coverage of every kind of prediction set.

``python examples/stories/calibration.py`` prints the tables of ``docs/stories/calibration.md``;
``--picture OUT.svg`` draws its reliability diagrams. One core, no download.

The task: of scikit-learn's digits every tenth label is wrong, in all parts of the data, and the network learns 400 of
them by heart. In a first version only the labels of the training were wrong, and the network was hardly overconfident.
Nothing was tuned: calibrators and sets have their default settings. Where another setting is shown, the default stands
beside it.
"""

import argparse
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import betabinom
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lightning_objectives import calibration as c
from lightning_objectives import metrics as m
from lightning_objectives import prediction_sets as p
from lightning_objectives.kinds import Calibrator, SetPredictor

TRAINING = 400
CALIBRATION = 500
"""Rows that calibrators, or sets, are fitted on. Of the 1797 digits, 897 are left to measure on."""
TEMPERATURE = 200
"""Rows for the temperature below the sets, which neither the sets nor the measurement may see."""
ALPHA = 0.1

CALIBRATORS: dict[str, Callable[[], Calibrator]] = {
    "TemperatureScaling": c.TemperatureScaling,
    "VectorScaling": c.VectorScaling,
    "MatrixScaling": c.MatrixScaling,
    "MatrixScaling, penalties 0.1": lambda: c.MatrixScaling(off_diagonal=0.1, intercept=0.1),
    "DirichletCalibration": c.DirichletCalibration,
    "DirichletCalibration, penalties 0.1": lambda: c.DirichletCalibration(off_diagonal=0.1, intercept=0.1),
    "PlattScaling": c.PlattScaling,
    "HCalibration": c.HCalibration,
    "SplineCalibration": c.SplineCalibration,
    "IsotonicCalibration": c.IsotonicCalibration,
    "HistogramBinning": c.HistogramBinning,
    "BBQ": c.BBQ,
}
SETS: dict[str, Callable[[], SetPredictor]] = {
    "APS": lambda: p.APS(alpha=ALPHA),
    "RAPS": lambda: p.RAPS(alpha=ALPHA),
    "RAPS, penalty 0.1 from the second class on": lambda: p.RAPS(alpha=ALPHA, penalty=0.1, free_classes=1),
    "LAC": lambda: p.LAC(alpha=ALPHA),
    "ConformalRiskControl": lambda: p.ConformalRiskControl(alpha=ALPHA),
}
DRAWN = ("network", "TemperatureScaling", "HCalibration", "IsotonicCalibration")

Rows = tuple[Tensor, Tensor]
Results = dict[str, dict[str, list[float]]]
"""Of each method, each measured value, a number for each seed (or split)."""


class Overfitted(L.LightningModule):
    """A network that is large for 400 images, and trained until it knows them by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: D102
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def digits(seed: int) -> tuple[Rows, Rows]:
    """The rows to train on and the others, in an order of the seed. Every tenth label is wrong."""
    images, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    y[::10] = (y[::10] + torch.randint(1, 10, y[::10].shape, generator=generator)) % 10
    return (x[:TRAINING], y[:TRAINING]), (x[TRAINING:], y[TRAINING:])


def trained(rows: Rows, *, seed: int, epochs: int) -> nn.Module:
    """The network, overfitted on the rows."""
    torch.manual_seed(seed)
    module = Overfitted()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, **quiet)
    trainer.fit(module, DataLoader(TensorDataset(*rows), batch_size=50, shuffle=True))
    return module.model.eval()


def measured(probabilities: Tensor, target: Tensor) -> dict[str, float]:
    """What the table shows of one network or calibrator."""
    collection = MetricCollection(
        {
            "accuracy": m.TopKAccuracy(from_logits=False),
            "NLL": m.NegativeLogLikelihood(from_logits=False),
            "Brier": m.BrierScore(from_logits=False),
            "ECE": m.CalibrationError(from_logits=False),
            "adaptive": m.AdaptiveCalibrationError(from_logits=False),
            "classwise": m.ClasswiseCalibrationError(from_logits=False),
        }
    )
    impossible = probabilities.gather(1, target[:, None]).eq(0).float().mean()
    return {**numbers(collection, probabilities, target), "target at 0": float(impossible)}


def numbers(collection: MetricCollection, predictions: Tensor, target: Tensor) -> dict[str, float]:
    """The values of the metrics."""
    return {name: float(value) for name, value in collection(predictions, target).items()}


def append(results: Results, name: str, values: dict[str, float]) -> None:
    """Add a number to each list."""
    for column, value in values.items():
        results.setdefault(name, {}).setdefault(column, []).append(value)


def coverage(logits: Tensor, target: Tensor, *, seed: int, splits: int) -> Results:
    """Coverage and size of the sets over random splits into rows to fit on and rows to measure on."""
    scaling = c.TemperatureScaling()
    scaling.fit(logits[:TEMPERATURE], target[:TEMPERATURE])
    target = target[TEMPERATURE:]
    scores = {"": logits[TEMPERATURE:], ", of scaled logits": scaling(logits[TEMPERATURE:]).log()}
    results: Results = {}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(splits):
        order = torch.randperm(len(target), generator=generator)
        fit, test = order[:CALIBRATION], order[CALIBRATION:]
        for name, make in SETS.items():
            for below, z in scores.items():
                predictor = make()
                predictor.fit(z[fit], target[fit], generator)
                sets = predictor(z[test], generator)
                append(results, name + below, numbers(m.set_metrics(), sets, target[test]))
    return results


def story(*, seeds: int = 3, epochs: int = 100, splits: int = 100) -> tuple[Results, Results, dict[str, Rows]]:
    """The calibrators' results by seed, the sets' results by split, and the probabilities for the picture."""
    calibrated: Results = {}
    sets: Results = {}
    drawn: dict[str, list[Rows]] = {}
    for seed in range(seeds):
        learned, held_out = digits(seed)
        model = trained(learned, seed=seed, epochs=epochs)
        with torch.no_grad():
            logits, target = model(held_out[0]), held_out[1]
            by_heart = model(learned[0]).argmax(1).eq(learned[1]).float().mean()
        fit, test = slice(CALIBRATION), slice(CALIBRATION, None)
        probabilities = {"network": logits[test].softmax(1)}
        for name, make in CALIBRATORS.items():
            calibrator = make()
            calibrator.fit(logits[fit], target[fit])
            probabilities[name] = calibrator(logits[test])
        for name, values in probabilities.items():
            append(calibrated, name, measured(values, target[test]))
            drawn.setdefault(name, []).append((values, target[test]))
        append(calibrated, "network", {"learned by heart": float(by_heart)})
        for name, columns in coverage(logits, target, seed=seed, splits=splits).items():
            for column, values in columns.items():
                sets.setdefault(name, {}).setdefault(column, []).extend(values)
    joined = {name: tuple(map(torch.cat, zip(*drawn[name]))) for name in DRAWN}
    return calibrated, sets, joined


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    if not all(map(math.isfinite, values)):
        return "inf"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def calibrator_table(results: Results) -> str:
    """One row for the network and for each calibrator."""
    columns = ["accuracy", "NLL", "Brier", "ECE", "adaptive", "classwise"]
    lines = ["| | " + " | ".join(columns) + " | target at 0 |", "| --- |" + " ---: |" * (len(columns) + 1)]
    for name, values in results.items():
        cells = [*(cell(values[column]) for column in columns), f"{mean(values['target at 0']):.1%}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def expected(rows: int) -> tuple[float, float]:
    """The interval of 95 % of the coverages that a threshold at the right rank has on so many new rows.

    A threshold at rank k of n covers a share of new rows that is drawn from Beta(k, n + 1 - k). How many of the rows it
    covers is then binomial.
    """
    rank = math.ceil((CALIBRATION + 1) * (1 - ALPHA))
    low, high = betabinom.interval(0.95, rows, rank, CALIBRATION + 1 - rank)
    return low / rows, high / rows


def set_table(results: Results, rows: int) -> str:
    """One row for each kind of set."""
    low, high = expected(rows)
    lines = [f"| | coverage | 95 % of the splits | inside of {low:.3f} to {high:.3f} | size |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, values in results.items():
        covered = np.array(values["coverage"])
        least, most = np.quantile(covered, [0.025, 0.975])
        inside = ((covered >= low - 1e-6) & (covered <= high + 1e-6)).mean()
        lines.append(
            f"| {name} | {covered.mean():.3f} | {least:.3f} to {most:.3f} | {inside:.0%} | {mean(values['size']):.2f} |"
        )
    return "\n".join(lines)


def draw(probabilities: dict[str, Rows], out: Path) -> None:
    """Reliability diagrams of the rows of all seeds."""
    # Without the first, each file would have other names inside; the second writes letters in place of their shapes.
    plt.rcParams |= {"svg.hashsalt": "lightning_objectives", "svg.fonttype": "none"}
    figure, axes = plt.subplots(1, len(probabilities), figsize=(13, 4), layout="constrained")
    for axis, (name, (values, target)) in zip(axes, probabilities.items()):
        error = m.CalibrationError(from_logits=False)
        error.update(values, target)
        error.plot(ax=axis)
        axis.set_title(f"{name}\ncalibration error {float(error.compute()):.3f}", fontsize="medium")
    metadata: dict[str, Any] = {"Date": None} if out.suffix == ".svg" else {}
    figure.savefig(out, metadata=metadata)
    plt.close(figure)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums of floats depend on how many threads share them
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*many workers|.*the logging interval|.*LeafSpec")
    calibrated, sets, drawn = story()
    by_heart = calibrated["network"].pop("learned by heart")
    print(f"labels of the training that the network gives, wrong ones included: {cell(by_heart)}\n")
    print(calibrator_table(calibrated), "\n")
    print(set_table(sets, 1797 - TRAINING - TEMPERATURE - CALIBRATION))
    if args.picture:
        draw(drawn, args.picture)


if __name__ == "__main__":
    main()
