"""The first picture of the page of performance: how long other libraries take for the same work."""

import json
from collections.abc import Iterator
from html import escape
from math import log2
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "peers.svg"


class Pair(NamedTuple):
    """The same work here and in another library, by the names in the results."""

    row: str
    table: str
    ours: str
    peer: str
    work: str
    other: str


_UPDATE, _FIT, _MERGE = (
    "resnet50 (98 MiB, 161 tensors)",
    "a fit, 10000 rows of 10 classes",
    "resnet50, 10 .safetensors files",
)
PAIRS = (
    Pair("ema_update", _UPDATE, "EMA", "timm ModelEmaV3", "one EMA update, ResNet-50", "timm"),
    Pair("ema_update", _UPDATE, "EMA", "Lightning EMAWeightAveraging", "one EMA update, ResNet-50", "Lightning"),
    Pair("ema_update", _UPDATE, "EMA", "torch AveragedModel(multi_avg_fn)", "one EMA update, ResNet-50", "torch"),
    Pair("ema_update", _UPDATE, "EMA", "ema-pytorch", "one EMA update, ResNet-50", "ema-pytorch"),
    Pair("ema_update", _UPDATE, "EMA", "torch-ema", "one EMA update, ResNet-50", "torch-ema"),
    Pair("ema_update", _UPDATE, "BEMA, not read", "TRL BEMACallback", "one BEMA update, ResNet-50", "TRL"),
    Pair("swap", "resnet50, in and out", "EMA", "Lightning EMAWeightAveraging", "to the average and back", "Lightning"),
    Pair(
        "trainer_step",
        "small CNN, batch 32",
        "AverageWeights(EMA())",
        "Lightning EMAWeightAveraging()",
        "training step with an EMA, small CNN",
        "Lightning",
    ),
    Pair(
        "calibration_error",
        "one update, 256 x 100",
        "CalibrationError",
        "torchmetrics MulticlassCalibrationError",
        "calibration error, 256 samples",
        "torchmetrics",
    ),
    Pair(
        "calibration_error",
        "one update, 10000 x 100",
        "CalibrationError",
        "torchmetrics MulticlassCalibrationError",
        "calibration error, 10,000 samples",
        "torchmetrics",
    ),
    Pair(
        "multi_sample_dropout",
        "2048 -> 1000",
        "multi_sample_dropout",
        "a loop of 8 heads and losses",
        "multi-sample dropout, 8 samples",
        "a plain loop",
    ),
    Pair(
        "alignment",
        "resnet18 on 32x32, batch 64",
        "GradientAlignment",
        "both gradients, then a backward pass, as released",
        "gradient alignment, ResNet-18",
        "the authors' code",
    ),
    Pair(
        "merging",
        _MERGE,
        "merge_checkpoints",
        "mergekit-pytorch, with its start",
        "merge of ten checkpoints, ResNet-50",
        "mergekit, with its start",
    ),
    Pair(
        "merging_ties",
        "4 .safetensors files and their base, 640 MiB, hot",
        "TIES",
        "mergekit's ties, with its start",
        "TIES merge of four networks",
        "mergekit, with its start",
    ),
    *(
        Pair(
            "post_hoc",
            _FIT,
            f"fit of {ours}",
            f"fit of torch-uncertainty's {peer}",
            f"fit of {ours}",
            "torch-uncertainty",
        )
        for ours, peer in (
            ("TemperatureScaling", "TemperatureScaler"),
            ("VectorScaling", "VectorScaler"),
            ("MatrixScaling", "MatrixScaler"),
            ("DirichletCalibration", "DirichletScaler"),
            ("IsotonicCalibration", "IsotonicRegressionScaler"),
            ("APS", "ConformalClsAPS"),
        )
    ),
)
"""One pair for each library and kind of work; the tables of the page have them in other sizes too."""
WIDTH, ROW, LEFT, MIDDLE, STEP = 800, 26, 250, 345, 55
MEANING = (
    "*What it means.* Of these {found} comparisons on a CPU, this package is at least 5 % faster in {faster}, and at "
    "least 5 % slower in {slower}. An update of an average, a metric or a fit is a small part of a training, so you "
    "will mostly notice that they cost no more than what you use now. The list has one line for each library and kind "
    "of work; the tables below have other sizes too."
)
STYLE = """
.lo-peers { --lo-ink: #1f2328; --lo-good: #1b7f3b; --lo-bad: #b3261e }
@media (prefers-color-scheme: dark) { .lo-peers { --lo-ink: #e6edf3; --lo-good: #4cc38a; --lo-bad: #ff8a80 } }
"""


def compared(rows: list[dict[str, Any]]) -> Iterator[tuple[Pair, float, float]]:
    """The pairs that were measured, with the median seconds of ours and of the peer."""
    for pair in PAIRS:
        for row in rows:
            for table in row["tables"] if row["row"] == pair.row else ():
                wall = table.get("wall", {})
                if table["name"].startswith(pair.table) and pair.ours in wall and pair.peer in wall:
                    yield pair, median(wall[pair.ours]), median(wall[pair.peer])
                    break
            else:
                continue
            break


def words(ratio: float) -> str:
    """A ratio of times as a person says it.

    >>> words(3.04), words(0.5), words(1.02)
    ('3.0x faster', '2.0x slower', 'the same')
    """
    if abs(ratio - 1) < 0.05:
        return "the same"
    return f"{ratio:.1f}x faster" if ratio > 1 else f"{1 / ratio:.1f}x slower"


def beside_peers(rows: list[dict[str, Any]]) -> list[str]:
    """The first section of the page: the picture, and what it means."""
    found = list(compared(rows))
    if not found:
        return []
    faster = sum(peer / ours > 1.05 for _, ours, peer in found)
    slower = sum(peer / ours < 0.95 for _, ours, peer in found)
    lines = ["| Work | Other library | Theirs | Ours | Ours is |", "| --- | --- | ---: | ---: | --- |"]
    for pair, ours, peer in found:
        lines.append(f"| {pair.work} | {pair.other} | {_time(peer)} | {_time(ours)} | {words(peer / ours)} |")
    return [
        "## Beside other libraries\n",
        "![How much faster or slower this package is than other libraries at the same work](images/peers.svg)\n",
        fill(MEANING.format(found=len(found), faster=faster, slower=slower), 118) + "\n",
        "\n".join(lines) + "\n",
    ]


def drawn(results: Path) -> str:
    """The picture as SVG: bars to the right are faster, bars to the left slower."""
    rows = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    parts = []
    found = list(compared(rows))
    for number, (pair, ours, peer) in enumerate(found):
        ratio, top = peer / ours, 30 + number * ROW
        length = max(-2.6, min(3.6, log2(ratio))) * STEP
        left, colour = (MIDDLE, "good") if length >= 0 else (MIDDLE + length, "bad")
        place = MIDDLE + length + 6 if length >= 0 else MIDDLE + 6
        parts.append(
            f'<text x="{LEFT + 8}" y="{top + 14}" text-anchor="end" fill="var(--lo-ink)">{escape(pair.work)}</text>'
            f'<text x="{place:g}" y="{top + 14}" fill="var(--lo-ink)">{words(ratio)} ({escape(pair.other)})</text>'
            f'<rect x="{left:g}" y="{top + 2}" width="{max(abs(length), 1):g}" height="16" fill="var(--lo-{colour})"/>'
        )
    height = 40 + len(found) * ROW
    return (
        f'<svg class="lo-peers" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">'
        "<title>This package beside other libraries: bars to the right are faster, bars to the left slower.</title>"
        f"<style>{STYLE}</style>"
        f'<text x="{MIDDLE + 8}" y="18" fill="var(--lo-ink)">faster</text>'
        f'<text x="{MIDDLE - 8}" y="18" text-anchor="end" fill="var(--lo-ink)">slower</text>'
        f'<path d="M{MIDDLE} 24 V{height - 8}" stroke="var(--lo-ink)"/>{"".join(parts)}</svg>\n'
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
