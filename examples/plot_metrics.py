"""Plots what ``LogMetrics`` and the callbacks logged in a run: ``python examples/plot_metrics.py metrics.csv OUT.png``.

Above the validation, each metric of the weights that are validated and of the others (raw, averages); below what the
callbacks log in training.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt


def curves(file: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each logged name, from the file of Lightning's ``CSVLogger``."""
    found: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    with file.open() as lines:
        for row in csv.DictReader(lines):
            for name, value in row.items():
                if value and name not in ("epoch", "step"):
                    found[name][0].append(int(row["step"]))
                    found[name][1].append(float(value))
    return found


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    found = curves(args.metrics)
    metrics = [m for m in ("top1", "nll", "ece", "brier") if f"val/{m}" in found]
    training = sorted(name for name in found if name.startswith("train/"))
    weights = sorted({name.split("/")[1] for name in found if name.count("/") == 2 and name.startswith("val/")})
    colors = {"validated": "black", "raw": "0.6"} | {name: f"C{i}" for i, name in enumerate(weights) if name != "raw"}
    columns = max(len(metrics), len(training), 1)
    figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 7), layout="constrained", squeeze=False)
    for axis, metric in zip(axes[0], metrics):
        for name in sorted(name for name in found if name.startswith("val/") and name.endswith(f"/{metric}")):
            label = name.removeprefix("val/").removesuffix(metric).rstrip("/") or "validated"
            axis.plot(*found[name], label=label, color=colors.get(label), ls=":" if label == "validated" else "-")
        axis.set(title=f"validation {metric}", xlabel="step", yscale="linear" if metric == "top1" else "log")
        axis.legend()
    for axis, name in zip(axes[1], training):
        axis.plot(*found[name], lw=0.8)
        axis.set(title=name, xlabel="step", yscale="log" if "loss" in name or "dual" in name else "linear")
    for axis in [*axes[0][len(metrics) :], *axes[1][len(training) :]]:
        axis.remove()
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
