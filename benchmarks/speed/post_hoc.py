"""Calibrators and prediction sets: a fit on logits, and the use of it, beside torch-uncertainty and scikit-learn.

The logits are drawn, and the labels are drawn from a softmax of them at another temperature. Each library fits on the
same numbers; torch-uncertainty gets them through a loader of one batch and an identity in place of a network. Its
`ConformalClsAPS` takes the plain quantile of the scores, ours that of n + 1, so that its sets are a little smaller.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed._bench import Bench, Target
from lightning_objectives.calibration import (
    DirichletCalibration,
    HistogramBinning,
    IsotonicCalibration,
    MatrixScaling,
    TemperatureScaling,
    VectorScaling,
)
from lightning_objectives.prediction_sets import APS, RAPS

PLAIN = "softmax alone"


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are surer than they should be, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, classes, generator=generator)
    return logits, torch.multinomial((logits / 2).softmax(1), 1, generator=generator)[:, 0]


def run(bench: Bench) -> None:
    rows, classes = (60, 3) if bench.tiny else (10_000, 10)
    logits, target = drawn(rows, classes)
    name = f"{rows} rows of {classes} classes"
    theirs = bench.peer("torch_uncertainty.post_processing")
    sklearn = bench.peer("sklearn.isotonic")
    loader = [(logits, target)]

    def fits(make: Callable[[], Any]) -> Callable[[], object]:
        return lambda: make().fit(logits, target)

    methods: dict[str, Callable[[], Any]] = {
        "TemperatureScaling": TemperatureScaling,
        "VectorScaling": VectorScaling,
        "MatrixScaling": MatrixScaling,
        "DirichletCalibration": DirichletCalibration,
        "IsotonicCalibration": IsotonicCalibration,
        "HistogramBinning": HistogramBinning,
        "APS": lambda: APS(alpha=0.1),
        "RAPS": lambda: RAPS(alpha=0.1),
    }
    runs: dict[str, Callable[[], object]] = {PLAIN: lambda: logits.softmax(1)}
    runs |= {f"fit of {key}": fits(make) for key, make in methods.items()}
    blank, targets = [], []
    peers = {
        "TemperatureScaling": ("TemperatureScaler", {}),
        "VectorScaling": ("VectorScaler", {"num_classes": classes}),
        "MatrixScaling": ("MatrixScaler", {"num_classes": classes}),
        "DirichletCalibration": ("DirichletScaler", {"num_classes": classes}),
        "IsotonicCalibration": ("IsotonicRegressionScaler", {}),
        "APS": ("ConformalClsAPS", {"alpha": 0.1, "enable_ts": False}),
    }
    for ours, (peer, settings) in peers.items():
        label = f"fit of torch-uncertainty's {peer}"
        if theirs is None:
            blank.append(label)
            continue

        def fit(peer: str = peer, settings: dict[str, Any] = settings) -> None:
            getattr(theirs, peer)(model=nn.Identity(), **settings).fit(loader)

        try:
            fit()
        except Exception as error:  # it may want something else in its next version
            bench.absent[peer] = f"{type(error).__name__}: {error}"[:120]
            blank.append(label)
            continue
        runs[label] = fit
        targets.append(Target(f"fit of {ours}", label, 1.1))
    if sklearn is not None:
        scores, hits = logits.softmax(1).double().numpy(), nn.functional.one_hot(target, classes).double().numpy()

        def regress() -> None:
            for column in range(classes):
                sklearn.IsotonicRegression(out_of_bounds="clip").fit(scores[:, column], hits[:, column])

        runs["fit of scikit-learn's IsotonicRegression, each class"] = regress
    bench.measure(f"a fit, {name}", runs, limit=PLAIN, targets=targets, blank=blank, repeats=7, warmup=1)

    uses: dict[str, Callable[[], object]] = {PLAIN: lambda: logits.softmax(1)}
    for key, make in methods.items():
        fitted = make()
        fitted.fit(logits, target)
        uses[key] = lambda fitted=fitted: fitted(logits)
    bench.measure(f"the use of it, {name}", uses, limit=PLAIN)
