"""The plots of the page, one for each claim. A dot is a seed, a bar the mean."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.quality import grid
from benchmarks.quality.results import Results, smooth

COLOURS = ["#444444", "#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#8d5a97", "#00798c"]
MEASURES = {"error": "test error", "nll": "test NLL", "worst class": "test error of the worst class"}


def dots(ax: Any, values: Mapping[str, Mapping[int, float]], *, label: str, beside: str = "") -> None:
    """One line for each arm, from above; ``beside`` is the arm whose mean is drawn through all."""
    shown = {name: list(found.values()) for name, found in values.items() if found}
    for place, (name, found) in enumerate(shown.items()):
        colour = COLOURS[0] if name == beside else COLOURS[1]
        ax.plot(found, [place] * len(found), "o", color=colour, alpha=0.55, markersize=5)
        ax.plot([np.mean(found)] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2.5)
    if shown.get(beside):
        ax.axvline(np.mean(shown[beside]), color=COLOURS[0], linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(shown)), list(shown))
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.grid(axis="x", alpha=0.3)


def arms_of(results: Results, task: str, names: list[str], measure: str) -> dict[str, dict[int, float]]:
    return {name: results.values(task, name, measure) for name in names}


def dropout(results: Results) -> plt.Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
    samples = {1: grid.ONE.name, **{m: f"MSD M={m} p=0.3" for m in (2, 4, 8, 16)}}
    for colour, (m, name) in zip(COLOURS, samples.items()):
        runs = [run for seed in results.seeds if (run := results.run("MLP", name, seed))]
        if runs:
            loss = np.mean([smooth(run["loss"]["values"]) for run in runs], 0)
            steps = np.arange(1, len(loss) + 1) * runs[0]["loss"]["every"]
            left.plot(steps, loss, color=colour, label=f"M={m}", linewidth=1.4)
    left.set(xlabel="step", ylabel="training loss, running mean", title="MLP, p=0.3", yscale="log")
    if left.lines:
        left.legend()
    names = {"none": grid.PLAIN.name, **{f"M={m}": name for m, name in samples.items()}}
    names["M=1, as long"] = grid.LONGER.name
    found = {label: results.values("MLP", name) for label, name in names.items()}
    dots(middle, found, label="test error", beside="M=1")
    middle.set_title("MLP, p=0.3")
    for colour, kind in ((COLOURS[0], "dropout"), (COLOURS[1], "MSD M=8")):
        points = {p: list(results.values("MLP", f"{kind} p={p}").values()) for p in (0.1, 0.3, 0.5, 0.7)}
        rates = [p for p, values in points.items() if values]
        if len(rates) > 1:
            right.plot(rates, [np.mean(points[p]) for p in rates], color=colour, label=kind)
            for p in rates:
                right.plot([p] * len(points[p]), points[p], "o", color=colour, alpha=0.4, markersize=4)
            right.legend()
    right.set(xlabel="p", ylabel="test error", title="MLP, by the rate")
    return figure


def distillation(results: Results) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), width_ratios=(3, 2))
    ours = [arm.name for arm in (grid.PLAIN, grid.TAUGHT_AS_LONG, grid.LOGITS, grid.DUAL, *grid.VARIANTS)]
    ours += [arm.name for arm in (grid.ONE_HEAD, grid.ALONE, *grid.PLAIN_KL)]
    dots(left, arms_of(results, "clean", ours, "error"), label="test error", beside="plain")
    left.set_title("clean, 8000 images")
    dots(right, arms_of(results, "5 % of the data", ours, "error"), label="test error", beside="plain")
    right.set_title("5 % of the data, 3000 images")
    return figure


def reweighting(results: Results) -> plt.Figure:
    tasks = ["clean", "long tail", "20 % symmetric noise", "40 % symmetric noise"]
    tasks += ["20 % asymmetric noise", "40 % asymmetric noise"]
    figure, axes = plt.subplots(2, 4, figsize=(17, 6.2))
    names = [arm.name for arm in (grid.PLAIN, grid.UPPER, grid.MIDDLE, *grid.SWEEP)]
    for ax, task in zip(axes.flat, tasks):
        dots(ax, arms_of(results, task, names, "error"), label="test error", beside="plain")
        ax.set_title(task)
    dots(
        axes.flat[6], arms_of(results, "long tail", names, "worst class"), label=MEASURES["worst class"], beside="plain"
    )
    axes.flat[6].set_title("long tail")
    lines = [grid.COSINE.name, *(arm.name for arm in (grid.UPPER, grid.MIDDLE, grid.TOKENS))]
    dots(axes.flat[7], arms_of(results, "characters", lines, "nll"), label="test loss", beside="cosine")
    axes.flat[7].set_title("characters")
    return figure


def averages(results: Results) -> plt.Figure:
    figure, axes = plt.subplots(2, 2, figsize=(12, 8))
    for row, task in zip(axes, ("characters", "clean")):
        for ax, arm in zip(row, ("constant, a third", "constant")):
            lines = {"raw": "raw"} | {f: results.readout(task, f"constant: {f}") for f in ("EMA", "BEMA", "SWA")}
            lines["BEMA φ=400"] = "BEMA φ=400"
            lowest = []
            for colour, name in zip(COLOURS, lines.values()):
                steps, rows = results.curve(task, arm, f"{name}/nll")
                if len(rows):
                    lowest.append(rows.mean(0).min())
                    style = "--" if "φ" in name else "-"
                    ax.plot(steps, rows.mean(0), style, color=colour, label=name, marker=".", linewidth=1.5)
            ax.set(xlabel="step", ylabel="validation NLL", title=f"{task}: {arm}")
            top = results.curve(task, arm, "raw/nll")[1]
            if len(top):
                ax.set_ylim(min(lowest) * 0.97, top.mean(0)[2] * 1.1)  # the first points lie far above
                ax.legend(fontsize=8)
            ax.grid(alpha=0.3)
    return figure


def merging(results: Results) -> plt.Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 4.6))
    order = ["constant: raw", "constant: WSM ema", "constant: WSM mean", "constant: WSM 1-sqrt", "WSD", "cosine"]
    dots(left, arms_of(results, "characters", order, "nll"), label="test loss", beside="constant: raw")
    left.set_title("characters: equal steps")
    windows = {}
    for w, s in ((3, 1), (9, 1), (9, 3), (18, 1), (18, 2), (18, 6), (27, 3)):
        suffix = "" if (w, s) == (9, 1) else f", window {w}/36, every {s}"
        windows[f"window {w}/36, {w // s} of them"] = f"constant: WSM 1-sqrt{suffix}"
    found = {label: results.values("characters", name, "nll") for label, name in windows.items()}
    dots(middle, found, label="test loss", beside="window 9/36, 9 of them")
    middle.set_title("characters: window and number of snapshots")
    parts = {1 / 3: "a third", 2 / 3: "two thirds", 1.0: ""}
    for colour, kind in zip(COLOURS, ("WSD", "cosine", "merges of one training")):
        points = {}
        for part, label in parts.items():
            suffix = f", {label}" if label else ""
            merged = f"constant: WSM 1-sqrt{f', after {label}' if label else ''}"
            name = f"{kind}{suffix}" if kind in ("WSD", "cosine") else merged
            points[part] = list(results.values("characters", name, "nll").values())
        there = [part for part, values in points.items() if values]
        right.plot(there, [np.mean(points[p]) for p in there], color=colour, label=kind, marker="o")
    right.set(
        xlabel="part of the steps", ylabel="test loss", title="characters: several decays, from one training or three"
    )
    right.legend()
    return figure


def together(results: Results) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(15, 5), sharey=True)
    for ax, measure in zip(axes, ("nll", "error")):
        for colour, name in zip(COLOURS, ("raw", "EMA 0.95", "BEMA η=0.4", "WSM 1-sqrt")):
            for place, arm in enumerate(grid.TOGETHER):
                values = list(results.values("clean", f"{arm.name}: {name}", measure).values())
                if values:
                    ax.plot(values, [place] * len(values), "o", color=colour, alpha=0.3, markersize=4)
                    label = name if place == 0 else None
                    ax.plot([np.mean(values)], [place], "|", color=colour, label=label, ms=18, markeredgewidth=3)
        decayed = list(results.values("clean", "plain", measure).values())
        if decayed and ax.lines:
            ax.axvline(np.mean(decayed), color=COLOURS[0], linestyle=":", label="plain, cosine decay")
        ax.set(xlabel=MEASURES[measure])
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(grid.TOGETHER)), [arm.name for arm in grid.TOGETHER])
    axes[0].invert_yaxis()
    if axes[1].lines:
        axes[1].legend(fontsize=8)
    return figure


CALIBRATED = {
    "plain": "plain",
    "MSD": grid.EIGHT.name,
    "LinUpper r=0.4": grid.UPPER.name,
    "Quadratic r=0.4": grid.MIDDLE.name,
    "logit KD": grid.LOGITS.name,
    "DHKD": grid.DUAL.name,
    "constant rate": "constant: raw",
    "constant, EMA": "constant: EMA",
    "constant, BEMA": "constant: BEMA",
    "constant, SWA": "constant: SWA",
    "constant, WSM": "constant: WSM",
    "constant, all": f"{grid.ALL}: WSM 1-sqrt",
}


def calibration(results: Results) -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), sharey=True)
    shown = {label: name for label, name in CALIBRATED.items() if results.values("clean", name, "ece")}
    for ax, measure in zip(axes, ("ece", "nll", "brier")):
        for colour, suffix, legend in ((COLOURS[2], "", "as trained"), (COLOURS[1], " scaled", "temperature scaled")):
            for place, name in enumerate(shown.values()):
                values = list(results.values("clean", name, measure + suffix).values())
                ax.plot(values, [place] * len(values), "o", color=colour, alpha=0.3, markersize=4)
                label = legend if place == 0 else None
                ax.plot([np.mean(values)], [place], "|", color=colour, label=label, ms=16, markeredgewidth=3)
        ax.set_xlabel(f"test {measure.upper() if measure != 'brier' else 'Brier score'}")
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(shown)), list(shown))
    axes[0].invert_yaxis()
    if shown:
        axes[2].legend(fontsize=8)
    return figure


PLOTS: dict[str, Callable[[Results], plt.Figure]] = {
    "dropout": dropout,
    "distillation": distillation,
    "reweighting": reweighting,
    "averages": averages,
    "merging": merging,
    "together": together,
    "calibration": calibration,
}


def draw(results: Results, folder: Path) -> None:
    """Every plot of which there are runs, as a PNG without a date in it: the same results give the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        figure, file = plot(results), folder / f"{name}.png"
        for ax in figure.axes:
            ax.set_visible(any(len(line.get_xdata()) for line in ax.lines))
        if any(ax.get_visible() for ax in figure.axes):
            figure.tight_layout()
            figure.savefig(file, dpi=90, bbox_inches="tight", metadata={"Software": None})
        else:
            file.unlink(missing_ok=True)
        plt.close(figure)
