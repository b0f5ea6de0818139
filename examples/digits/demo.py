"""The demo: every system on scikit-learn's digits, alone and all together, beside the baseline; 3 seeds each.

Nothing is selected: the test set is read once, at the end of each training, and what does not help shows as such.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import torch

from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.callbacks import (
    AverageWeights,
    DualHeadKDCallback,
    EMACallback,
    LogMetrics,
    LossReweightingCallback,
    MergeCheckpoints,
    MultiSampleDropoutCallback,
    WSMCallback,
)
from lightning_objectives.data import DigitsDataModule
from lightning_objectives.merging import WSM
from lightning_objectives.metrics import CalibrationError

sys.path.insert(0, str(Path(__file__).parents[1] / "existing_project"))
from model import Digits  # a project's own module, which knows of no plug-in

EPOCHS, SEEDS = 12, 3
STEPS = EPOCHS * 20  # 1257 images in batches of 64


def wsm() -> WSMCallback:
    """The last eight snapshots, of the last third of the training."""
    return WSMCallback(
        last=8, every_n_steps=STEPS // 24, start_step=STEPS * 2 // 3, evaluate=True, buffers="recalibrate"
    )


def distillation(teacher: L.LightningModule) -> DualHeadKDCallback:
    """With the paper's settings for CIFAR-100."""
    return DualHeadKDCallback(teacher=teacher, alpha=1.0, temperature=2.0)


# Each gets the teacher of its seed, whether it asks for it or not. Merging wants a constant learning rate.
ARMS: dict[str, Any] = {
    "baseline": lambda teacher: [],
    "EMA": lambda teacher: [EMACallback(decay=0.98, warmup=True)],
    "BEMA": lambda teacher: [AverageWeights(BEMA())],
    "BEMA, recalibrated": lambda teacher: [AverageWeights(BEMA(), buffers="recalibrate")],
    "SWA": lambda teacher: [AverageWeights(SWA(), start_step=STEPS * 3 // 4)],
    "loss reweighting": lambda teacher: [LossReweightingCallback(temperature=1.0)],
    "multi-sample dropout": lambda teacher: [MultiSampleDropoutCallback(num_samples=8, p=0.3)],
    "dual-head distillation": lambda teacher: [distillation(teacher)],
    "all but the merge": lambda teacher: [
        AverageWeights([BEMA(), EMA(decay=0.98, warmup=True)], buffers="recalibrate"),
        LossReweightingCallback(temperature=1.0),
        MultiSampleDropoutCallback(num_samples=8, p=0.3),
        distillation(teacher),
    ],
    "constant rate": lambda teacher: [],
    "constant rate, WSM": lambda teacher: [wsm()],
    "constant rate, all five": lambda teacher: [
        AverageWeights([BEMA(), EMA(decay=0.98, warmup=True)]),
        LossReweightingCallback(temperature=1.0),
        MultiSampleDropoutCallback(num_samples=8, p=0.3),
        distillation(teacher),
        wsm(),
    ],
}
COLUMNS = {"test/top1": "accuracy", "test/nll": "NLL", "test/ece": "ECE"}


class Watch(L.Callback):
    """Times the training steps and keeps the curves of the validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.curves: dict[str, list[float]] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From the start of a batch to the start of the next, whatever happens in between."""
        now = time.process_time()  # one thread: its own time, whatever else the machine does
        if batch_idx > 0:
            self.seconds.append(now - self.start)
        self.start = now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One point of each curve, an epoch."""
        for key, value in trainer.callback_metrics.items():
            if key.startswith("val/") and key.endswith("nll"):
                self.curves.setdefault(key, []).append(value.item())


def trainer_of(*callbacks: L.Callback, directory: Path) -> L.Trainer:
    """A quiet Trainer."""
    return L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=directory,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def train_teacher(seed: int, directory: Path) -> L.LightningModule:
    """A network of three times the width, trained as the baseline."""
    L.seed_everything(seed, workers=True, verbose=False)
    teacher = Digits(width=48)
    trainer_of(directory=directory).fit(teacher, datamodule=DigitsDataModule(seed=seed))
    return teacher


def train(arm: str, seed: int, teacher: L.LightningModule, directory: Path) -> dict[str, Any]:
    """One training and its test, of the weights that it leaves, or of the merge where there is one."""
    L.seed_everything(seed, workers=True, verbose=False)
    watch, metrics = Watch(), LogMetrics(weights=["raw", "average"])
    callbacks = ARMS[arm](teacher)
    trainer = trainer_of(watch, *callbacks, metrics, directory=directory)
    net, data = Digits(decay="constant" not in arm), DigitsDataModule(seed=seed)
    trainer.fit(net, datamodule=data)
    merge = next((callback for callback in callbacks if isinstance(callback, MergeCheckpoints)), None)
    if merge is not None:
        net = Digits.load_from_checkpoint(merge.path)
        trainer = trainer_of(LogMetrics(), directory=directory)
        trainer.strategy.connect(net)
    trainer.save_checkpoint(directory / f"{arm.replace(',', '').replace(' ', '_')}-{seed}.ckpt", weights_only=True)
    tested = trainer.test(net, datamodule=data, verbose=False)[0]
    reliability = CalibrationError(num_bins=10)
    net.eval()
    with torch.no_grad():
        for images, target in data.test_dataloader():
            reliability.update(net(images), target)
    return {
        "arm": arm,
        "seed": seed,
        "ms": 1000 * median(watch.seconds),
        "curves": watch.curves,
        "reliability": reliability,
    } | {key: tested[key] for key in COLUMNS}


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    lines = [f"| method | {' | '.join(COLUMNS.values())} | time per step |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    base = {r["seed"]: r["ms"] for r in results if r["arm"] == "baseline"}
    for arm in ARMS:
        mine = [r for r in results if r["arm"] == arm]
        cells = []
        for key in COLUMNS:
            values = [r[key] for r in mine]
            cells.append(f"{mean(values):.4f} ± {stdev(values):.4f}")
        ratio = median(r["ms"] / base[r["seed"]] for r in mine)
        lines.append(f"| {arm} | {' | '.join(cells)} | {ratio:.2f}x |")
    return "\n".join(lines)


def plot_reliability(results: list[dict[str, Any]], path: Path) -> None:
    """The reliability diagram of each method, over the test sets of all seeds."""
    figure, axes = plt.subplots(2, (len(ARMS) + 1) // 2, figsize=(16, 8), layout="constrained")
    for axis, arm in zip(axes.flat, ARMS):
        first, *others = [r["reliability"] for r in results if r["arm"] == arm]
        for other in others:
            first.merge_state(other)
        first.plot(ax=axis)
        axis.set_title(arm)
    for axis in axes.flat[len(ARMS) :]:
        axis.remove()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_curves(results: list[dict[str, Any]], path: Path) -> None:
    """The validation NLL of the raw and of the averaged weights, the mean over the seeds."""
    arms = [
        arm
        for arm in ARMS
        if any({"val/raw/nll", "val/wsm/nll"} & set(r["curves"]) for r in results if r["arm"] == arm)
    ]
    columns = (len(arms) + 1) // 2
    figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 7), sharey=True, layout="constrained")
    for axis in axes.flat[len(arms) :]:
        axis.remove()
    for axis, arm in zip(axes.flat, arms):
        mine = [r["curves"] for r in results if r["arm"] == arm]
        for key in (key for key in mine[0] if key != "val/nll" or "val/raw/nll" not in mine[0]):
            curve = torch.tensor([r[key] for r in mine]).mean(0)
            epochs = range(EPOCHS - len(curve) + 1, EPOCHS + 1)  # a merge begins late
            axis.plot(epochs, curve, label=key, color="0.6" if key in ("val/raw/nll", "val/nll") else None)
        axis.set(title=arm, xlabel="epoch", yscale="log")
        axis.legend()
    figure.supylabel("validation NLL")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_merge(results: list[dict[str, Any]], path: Path) -> None:
    """The shares of the snapshots by shape, and what merging makes of a constant learning rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, shape in enumerate(("linear", "1-sqrt", "cosine", "square", "ema")):
        shares = WSM(shape=shape).coefficients(range(1, 9))
        left.bar([n + (i - 2) * 0.16 for n in range(1, 9)], shares, width=0.16, label=shape)
    left.set(title="coefficients of 8 snapshots", xlabel="snapshot, oldest first", ylabel="share")
    left.legend()
    for arm in ("baseline", "constant rate, WSM"):
        mine = [r["curves"] for r in results if r["arm"] == arm]
        for key in ("val/nll", "val/wsm/nll") if "WSM" in arm else ("val/nll",):
            curve = torch.tensor([r[key] for r in mine]).mean(0)
            label = {"val/nll": "constant rate", "val/wsm/nll": "merged"}[key] if "WSM" in arm else "one cycle"
            right.plot(range(EPOCHS - len(curve) + 1, EPOCHS + 1), curve, label=label)
    right.set(title="validation NLL", xlabel="epoch", yscale="log")
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train everything, print the table, and say where the rest is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("runs/digits"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a net gains nothing from more, and times by itself are steadier
    began = time.perf_counter()
    results = []
    for seed in range(SEEDS):
        teacher = train_teacher(seed, directory)
        for arm in ARMS:
            results.append(train(arm, seed, teacher, directory))
            print(f"{arm}, seed {seed}: accuracy {results[-1]['test/top1']:.4f}", flush=True)
    text = table(results)
    (directory / "table.md").write_text(text + "\n")
    plain = [{key: value for key, value in r.items() if key != "reliability"} for r in results]
    (directory / "results.json").write_text(json.dumps(plain, indent=1))
    plot_reliability(results, directory / "reliability.png")
    plot_curves(results, directory / "curves.png")
    plot_merge(results, directory / "merge.png")
    print(
        f"\n{EPOCHS} epochs on 1257 images, {SEEDS} seeds (split, start and order), tested once on 270 images each:\n"
    )
    print(text)
    print(
        "\nMean ± standard deviation over the seeds; time per step is the median of the ratios to the baseline (CPU)."
    )
    print("WSM and all five are measured by their merge; every other row by the weights that the training leaves.")
    print("Differences within the spread are no evidence, either way.")
    print(f"Table, results, plots (reliability.png, curves.png, merge.png) and checkpoints: {directory.resolve()}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
