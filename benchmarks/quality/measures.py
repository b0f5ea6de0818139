"""What a network is judged by, on logits that were computed once; less is better in every one of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.quality.data import CLASSES
from lightning_objectives.calibration import TemperatureScaling
from lightning_objectives.metrics import brier_score, calibration_error, negative_log_likelihood


@torch.no_grad()
def outputs(network: nn.Module, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """All logits and targets, a row a sample or character."""
    network.eval()
    pairs = [(network(inputs).flatten(0, -2), target.flatten()) for inputs, target in loader]
    logits, target = (torch.cat(part) for part in zip(*pairs))
    return logits, target


def measures(logits: Tensor, target: Tensor, *, scaling: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
    """Of a classifier; with ``scaling`` also behind it, as ``nll scaled`` and so on."""
    right = (logits.argmax(1) == target).double()
    by_class = torch.stack([right[target == label].mean() for label in range(CLASSES)])
    found = {"error": 1 - right.mean(), "worst class": 1 - by_class.min()} | _calibration(logits, target)
    if scaling is not None:
        scaled = scaling(logits).clamp_min(1e-30).log()
        found |= {f"{name} scaled": value for name, value in _calibration(scaled, target).items()}
    return _rounded(found)


def _calibration(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {
        "nll": negative_log_likelihood(logits, target).mean(),
        "brier": brier_score(logits, target).mean(),
        "ece": calibration_error(logits, target),
    }


def text_measures(logits: Tensor, target: Tensor, *, context: int) -> dict[str, float]:
    """Of a character model: the mean loss of a character, and that of the worst tenth of the windows."""
    losses = F.cross_entropy(logits, target, reduction="none").double()
    windows = losses.view(-1, context).mean(1)
    return _rounded({"nll": losses.mean(), "worst tenth": windows.topk(max(1, len(windows) // 10)).values.mean()})


def judged(network: nn.Module, val: DataLoader, test: DataLoader | None) -> dict[str, dict[str, float]]:
    """Both splits, the temperature being fitted on the validation alone; a search never sees the test."""
    parts = {"val": val} | ({} if test is None else {"test": test})
    context = getattr(val.dataset, "context", None)
    found = {name: outputs(network, loader) for name, loader in parts.items()}
    if context is not None:
        return {name: text_measures(*pair, context=context) for name, pair in found.items()}
    scaling = TemperatureScaling()
    scaling.fit(*found["val"])
    return {name: measures(*pair, scaling=scaling if name == "test" else None) for name, pair in found.items()}


def _rounded(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
