"""The calibration error of a million rows of a hundred classes.

The limit is one `max` over the classes, without which no top label is known. Then what the value is worth at the scale
of pixels, where sums in float32 stop growing.
"""

import torch
from torchmetrics.classification import MulticlassCalibrationError

from benchmarks.speed._bench import Bench, Target
from lightning_objectives.metrics import CalibrationError

LIMIT, OURS, PEER = "max over the classes", "CalibrationError", "torchmetrics MulticlassCalibrationError"


def run(bench: Bench) -> None:
    draw = torch.Generator().manual_seed(0)
    classes = 10 if bench.tiny else 100
    for batch, bound in ((16, 0.0),) if bench.tiny else ((256, 1.8), (10_000, 1.3)):
        probabilities = torch.randn(batch, classes, generator=draw).mul_(3).softmax(1).to(bench.device)
        target = torch.randint(classes, (batch,), generator=draw).to(bench.device)
        calls = 1 if bench.tiny else max(1, 20_000 // batch)
        metric = CalibrationError(from_logits=False).to(bench.device)
        theirs = MulticlassCalibrationError(num_classes=classes, n_bins=15).to(bench.device)

        def limit(rows=probabilities, calls=calls) -> None:
            for _ in range(calls):
                rows.max(1)

        def ours(rows=probabilities, target=target, calls=calls, metric=metric) -> None:
            for _ in range(calls):
                metric.update(rows, target)

        def peer(rows=probabilities, target=target, calls=calls, theirs=theirs) -> None:
            for _ in range(calls):
                theirs.update(rows, target)
            theirs.reset()  # its state grows with every row

        bench.measure(
            f"one update, {batch} x {classes}",
            {LIMIT: limit, OURS: ours, PEER: peer},
            limit=LIMIT,
            repeats=15,
            per_call=calls,
            targets=[] if bench.tiny else [Target(OURS, LIMIT, bound)],
        )
    if bench.device == "cpu":
        scale(bench)


def scale(bench: Bench) -> None:
    """Two-class rows of confidence 0.9 of which 80 % are right: the error is 0.1 at any number of rows."""
    piece = 100 if bench.tiny else 1_000_000
    probabilities = torch.tensor([[0.9, 0.1]]).expand(piece, 2).contiguous()
    target = (torch.arange(piece) % 10 >= 8).long()
    exact = abs(float(probabilities[0, 0].double()) - 0.8)
    ours, theirs, rows = CalibrationError(from_logits=False), MulticlassCalibrationError(2, n_bins=15), []
    counts = (1, 2) if bench.tiny else (1, 20, 40)
    for done in range(1, counts[-1] + 1):
        ours.update(probabilities, target)
        if done <= (1 if bench.tiny else 20):  # its state is all the rows
            theirs.update(probabilities, target)
        if done in counts:
            value = float(ours.compute())
            other = float(theirs.compute()) if done <= (1 if bench.tiny else 20) else None
            state = sum(v.nbytes for v in ours.metric_state.values())
            rows.append((f"{done * piece:,} rows", value, abs(value - exact), other, state))
    bench.figures(
        f"the value for many rows; exact {exact:.4f}",
        ["", OURS, "off by", PEER, "bytes of our state"],
        rows,
        targets=[("off by, at most", max(row[2] for row in rows), "<=", 1e-6)],
    )
