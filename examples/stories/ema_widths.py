"""Finds the best width of an average of the weights after one training, with ``post_hoc_ema``.

A training keeps two power-function averages and 16 checkpoints. Afterwards the averages of other widths are put
together from these files and validated. Are they those that the training would have kept? A second training keeps them
all, to tell. It takes about 45 seconds::

    python examples/stories/ema_widths.py --out ema_widths.md --picture ema_widths.svg
"""

import argparse
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import lightning as L
import matplotlib.pyplot as plt
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_objectives as lo

KEPT = (0.05, 0.1)
"""The widths that the training keeps, which are the paper's."""
WIDTHS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.2886)
"""The widths that are asked for afterwards; the last is nearly the plain mean of all weights."""
STEPS, SNAPSHOTS, MAX_ERROR = 1600, 16, 0.05


class Net(L.LightningModule):
    """A small network, trained at a constant learning rate on noisy images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch with fresh noise."""
        images, target = batch
        return F.cross_entropy(self.net(images + 0.3 * torch.randn_like(images)), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD without a schedule: averages take the place of a decay."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Row(NamedTuple):
    """The NLL of some weights on both parts; of a width also what the files and the second training tell."""

    validation: float = math.nan
    test: float = math.nan
    error: float = math.nan
    """The distance of the profile from the one that is asked for, in parts of that."""
    kept: float = math.nan
    """The validation NLL of the average of this width that a second training keeps."""
    apart: float = math.nan
    """The distance of the two averages, in parts of the distance of the kept one from the raw weights."""


class Result(NamedTuple):
    """What one seed gives."""

    raw: Row
    ema: Row
    widths: dict[float, Row]
    """For each width its row; only with the error of the profile, if that is too large for a file."""


def trained(seed: int, average: lo.AverageWeights, data: lo.DigitsDataModule, steps: int, folder: Path) -> None:
    """One training with its checkpoints in a folder; an average leaves the training as it is."""
    torch.manual_seed(seed)
    every = steps // SNAPSHOTS
    trainer = L.Trainer(
        max_steps=every * SNAPSHOTS,
        accelerator="cpu",
        devices=1,
        callbacks=[average, ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), data.train_dataloader())


def nll(weights: Mapping[str, Tensor], data: lo.DigitsDataModule) -> tuple[float, float]:
    """The NLL on the validation and the test part."""
    net = Net()
    net.load_state_dict(weights)
    with torch.no_grad():
        validation, test = (F.cross_entropy(net.net(p.tensors[0]), p.tensors[1]).item() for p in (data.val, data.test))
    return validation, test


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The Euclidean distance of two sets of weights."""
    return math.sqrt(sum((one[name] - other[name]).double().square().sum().item() for name in one))


def one_seed(seed: int, steps: int, folder: Path) -> Result:
    """The training, the averages after it, and the second training that tells whether they are right."""
    data = lo.DigitsDataModule(val_fraction=0.2, test_fraction=0.2, batch_size=16, seed=seed)
    data.setup()
    two = lo.AverageWeights([*(lo.PowerEMA(sigma_rel=width) for width in KEPT), lo.EMA(decay=0.99)])
    trained(seed, two, data, steps, folder / "two")
    raw = two.weights("raw")
    every = lo.AverageWeights([lo.PowerEMA(sigma_rel=width) for width in WIDTHS])
    trained(seed, every, data, steps, folder / "every")
    if any(not torch.equal(tensor, every.weights("raw")[name]) for name, tensor in raw.items()):
        raise RuntimeError("The two trainings differ, so their averages cannot be compared: run on one CPU thread.")
    files, out, widths = list((folder / "two").glob("*.ckpt")), folder / "wide.pt", {}
    for width, name in zip(WIDTHS, every.names):
        kept = every.weights(name)
        error = lo.post_hoc_ema(files, out, sigma_rel=width, max_error=math.inf, dry_run=True).error
        widths[width] = Row(error=error, kept=nll(kept, data)[0])
        if error <= MAX_ERROR:
            lo.post_hoc_ema(files, out, sigma_rel=width, max_error=MAX_ERROR)
            state = torch.load(out)["state_dict"]
            apart = distance(state, kept) / distance(raw, kept)
            validation, test = nll(state, data)
            widths[width] = widths[width]._replace(validation=validation, test=test, apart=apart)
    return Result(Row(*nll(raw, data)), Row(*nll(two.weights("ema"), data)), widths)


def cell(values: Sequence[float], pattern: str) -> str:
    """Mean and standard deviation over the seeds; nothing if there is no number."""
    if any(math.isnan(value) for value in values):
        return "-"
    spread = f" ± {stdev(values):{pattern}}" if len(values) > 1 else ""
    return f"{mean(values):{pattern}}{spread}"


def table(results: Sequence[Result]) -> str:
    """The Markdown table: the raw weights, the EMA, and each width."""
    head = ["weights", "validation NLL", "test NLL", "kept: validation NLL", "weights apart", "error of the profile"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --: |" * (len(head) - 1)]
    rows = {"raw": [r.raw for r in results], "EMA(decay=0.99), kept": [r.ema for r in results]}
    rows |= {f"width {width}": [r.widths[width] for r in results] for width in WIDTHS}
    for name, found in rows.items():
        numbers = [cell([getattr(row, key) for row in found], ".4f") for key in ("validation", "test", "kept")]
        # The profile depends on the number of updates alone, so all seeds have one error.
        shares = [cell([row.apart for row in found], ".2%"), cell([found[0].error], ".2%")]
        lines.append(f"| {name} | {' | '.join([*numbers, *shares])} |")
    chosen = [min(r.widths, key=lambda width: _or_inf(r.widths[width].validation)) for r in results]
    lines += ["", f"Best width on the validation part, seed by seed: {', '.join(map(str, chosen))}."]
    test = [r.widths[width].test for r, width in zip(results, chosen)]
    lines += [f"Its test NLL: {cell(test, '.4f')}.", ""]
    return "\n".join(lines)


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value


def draw(results: Sequence[Result], file: Path) -> None:
    """The validation NLL of each width, averaged over the seeds, beside the raw weights and the EMA."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    written = [width for width in WIDTHS if not math.isnan(results[0].widths[width].validation)]
    axis.plot(written, _means(results, written, "validation"), "o-", color="C0", label="post_hoc_ema; thin: one seed")
    for r in results:
        axis.plot(written, [r.widths[width].validation for width in written], color="C0", lw=0.7, alpha=0.5)
    axis.plot(WIDTHS, _means(results, WIDTHS, "kept"), "x", color="black", label="kept in a second training")
    for name, color in (("raw", "C3"), ("ema", "C2")):
        label = {"raw": "raw weights", "ema": "EMA(decay=0.99), kept"}[name]
        axis.axhline(mean(getattr(r, name).validation for r in results), color=color, ls="--", label=label)
    axis.set(xlabel="relative width of the average", ylabel="validation NLL", xscale="log")
    axis.set_xticks(WIDTHS, [f"{width:.2g}" for width in WIDTHS], fontsize="small", rotation=45)
    axis.minorticks_off()
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ema_widths"}):  # small, and the same in each run
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {})
    plt.close(figure)


def _means(results: Sequence[Result], widths: Sequence[float], key: str) -> list[float]:
    return [mean(getattr(r.widths[width], key) for r in results) for width in widths]


def main() -> None:
    """Run, print, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the training, a multiple of {SNAPSHOTS}")
    parser.add_argument("--out", type=Path, default=Path("ema_widths.md"))
    parser.add_argument("--picture", type=Path, default=Path("ema_widths.svg"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    results = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            results.append(one_seed(seed, args.steps, Path(folder)))
    text = table(results)
    args.out.write_text(text)
    draw(results, args.picture)
    print(text)


if __name__ == "__main__":
    main()
