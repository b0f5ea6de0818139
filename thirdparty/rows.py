"""The rows of the table: each callback, its form that must change nothing, and its number worked by hand."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_objectives as lo
from thirdparty.case import Case
from thirdparty.watch import Recording, State, close, largest_difference

Made = list[Any]
EXACT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One callback, or several that belong together."""

    name: str
    make: Callable[[Case, dict[str, Any], Path], Made]
    """``(case, told, directory)`` -> the callbacks."""
    neutral: Callable[[Case, dict[str, Any], Path], Made] | None = None
    """The same callbacks in a form that must change neither values nor gradients."""
    leaves_alone: bool = False
    """Whether the raw weights must be those of the plain run, to the bit."""
    in_step: bool = True
    """Whether it acts in the training step, which manual optimization forbids."""
    for_classes: bool = False
    """Whether it means something for logits of classes only, and must refuse everything else."""
    check: Callable[[Case, Recording, Recording, Made], dict[str, float | bool]] | None = None
    """``(case, fit, plain, callbacks)`` -> checks: a difference (at most 1e-6), or whether something holds."""


SEEN: list[int] = []
"""How many rows the weighting of ones saw, in each call."""


def ones(losses: Tensor) -> Tensor:
    """Weights that change nothing."""
    SEEN.append(len(losses))
    return torch.ones_like(losses)


def same_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy in place of cross entropy, or a squared error in place of one."""
    if logits.shape == target.shape:
        return (logits - target).square().flatten(1).mean(1)
    return F.cross_entropy(logits, target, reduction="none")


def one_stack(features: Tensor, head: Any) -> Tensor:
    """The head's own output as the only stack."""
    output: Tensor = head(features)
    return output[None]


def itself(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A mixture of each sample with itself."""
    index = torch.arange(len(inputs), device=inputs.device)[:, None]
    return inputs, index, torch.ones(index.shape, device=inputs.device)


def nothing(logits: Tensor) -> Tensor:
    """A term of zero."""
    return logits.sum() * 0.0


def place(callback: Any, method: Any, told: dict[str, Any], **more: Any) -> Any:
    """Make a callback with those of the user's words that it takes."""
    known = callback.__dataclass_fields__
    return callback(method, **{name: value for name, value in {**told, **more}.items() if name in known})


# -- averages and merges by hand, in float64 ---------------------------------------------------------------------------


def ema_by_hand(weights: list[State]) -> State:
    """The decay is 0.9; the first update copies the weights."""
    average = {name: value.double() for name, value in weights[min(1, len(weights) - 1)].items()}
    for state in weights[2:]:
        average = {name: 0.9 * average[name] + 0.1 * state[name].double() for name in average}
    return average


def bema_by_hand(weights: list[State]) -> State:
    """Equations of the paper: beta = (10 + t) ** -0.5, alpha = (10 + t) ** -0.2."""
    average = {name: value.double() for name, value in weights[0].items()}
    for t, state in enumerate(weights[1:], start=1):
        beta = (10 + t) ** -0.5
        average = {name: (1 - beta) * average[name] + beta * state[name].double() for name in average}
    alpha = (10 + len(weights) - 1) ** -0.2
    last, first = weights[-1], weights[0]
    return {name: average[name] + alpha * (last[name].double() - first[name].double()) for name in average}


def _check_average(by_hand: Callable[[list[State]], State]) -> Callable[..., dict[str, float | bool]]:
    def check(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
        trained = {name for name, p in fit.module.named_parameters() if p.requires_grad}
        moved = {name: value for name, value in fit.module.state_dict().items() if name in trained}
        hand = {name: value for name, value in by_hand(fit.weights).items() if name in moved}
        checks: dict[str, float | bool] = {"module after the fit": largest_difference(moved, hand)}
        for path, steps in fit.files.items():
            saved = torch.load(path, weights_only=False)["state_dict"]
            hand = {name: value for name, value in by_hand(fit.weights[:steps]).items() if name in moved}
            absent = hand.keys() - saved.keys()
            same = float("inf") if absent else largest_difference({name: saved[name] for name in hand}, hand)
            checks[f"{path.stem} file"] = same
        return checks

    return check


def _check_merge(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    """Two snapshots: the older has the share sqrt(1/2) of the shape 1-sqrt."""
    taken = [step for step in range(1, len(fit.weights)) if step % 2 == 0][-2:]
    merge = next(c for c in fit.callbacks if isinstance(c, lo.MergeCheckpoints))
    if merge.path is None:
        return {"merged.ckpt is written": False}
    merged = torch.load(merge.path, weights_only=False)["state_dict"]
    old, new = (fit.weights[step] for step in taken)
    hand = {}
    for name in old:
        if name in merged and merged[name].is_floating_point():
            hand[name] = 0.5**0.5 * old[name].double() + (1 - 0.5**0.5) * new[name].double()
    same = largest_difference({name: merged[name] for name in hand}, hand)
    return {"merged.ckpt": same, "merged.ckpt has all keys": merged.keys() == plain.module.state_dict().keys()}


def first_rows(case: Case) -> tuple[Tensor, Tensor] | None:
    """The logits and targets of the first training batch, which is that of the validation, before the training."""
    if case.evaluate is None or not case.drawless:
        return None
    logits, target = case.evaluate(case.fresh().train())
    return logits.double(), target


def losses_by_hand(logits: Tensor, target: Tensor) -> Tensor:
    """The cross entropy of each row, binary for (N,) logits; 0 where the target is -100."""
    if logits.dim() > 1:
        return F.cross_entropy(logits, target, reduction="none")
    losses = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0).double(), reduction="none")
    return losses * (target != -100)


def apart(found: float, expected: Tensor | float) -> float:
    """The difference of a logged value from the one by hand, relative to it (at least 1)."""
    return abs(found - float(expected)) / max(1.0, abs(float(expected)))


def _check_weights(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    """Each sample counts by the mean loss of its tokens or pixels that are not ignored."""
    logged = fit.logged[0]
    checks: dict[str, float | bool] = {"weights differ": logged.get("train/max_weight", 0.0) > 1.0}
    rows = first_rows(case)
    if rows is None or case.samples is None:
        return checks
    elements = losses_by_hand(*rows).reshape(case.samples, -1)
    counts = (rows[1] != -100).reshape(case.samples, -1).sum(1)
    losses = elements.sum(1) / counts.clamp_min(1)
    h = (2 * losses - losses.max() - losses.min()) / (losses.max() - losses.min())
    weights = len(losses) * ((h + 1).clamp_max(1.0) / 0.4).softmax(0)
    # Whatever the module divides by, it divides both sums by it.
    hand = plain.losses[0] * (weights[:, None] * elements).sum() / elements.sum()
    return checks | {"weighted loss by hand": apart(fit.losses[0], hand)}


def _check_replaced(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    """LDR at the temperature 1 is cross entropy minus log C."""
    rows = first_rows(case)
    if rows is None or not case.classifies:
        return {}
    return {"loss by hand": apart(fit.losses[0], F.cross_entropy(*rows) - math.log(rows[0].shape[1]))}


def _check_penalty(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    """The mean of the squared log-normaliser over the rows that count."""
    rows = first_rows(case)
    if rows is None or not case.classifies:
        return {}
    logits, target = rows
    squares = logits.logsumexp(1).square()
    found = fit.logged[0]["train/logpartitionpenalty"]
    return {
        "penalty by hand, over the rows that count": apart(found, squares[target != -100].mean()),
        "loss by hand": apart(fit.losses[0], F.cross_entropy(logits, target) + found),
    }


def _check_teacher(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    distance = fit.logged[0].get("train/vanillakd", float("nan"))
    if case.same_teacher:
        return {"distance to a copy": distance}
    return {"distance is finite": 0 <= distance < float("inf")}


def _check_clipped(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    norms = [float(g.norm()) for gradients in fit.gradients for g in gradients if g is not None]
    return {"each norm is at most 1e-3": max(norms) <= 1e-3 * (1 + 1e-5)}


def _check_combined(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    return {"weights of the terms are logged": {"train/weight_0", "train/weight_1"} <= fit.logged[0].keys()}


def _check_metrics(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    if case.evaluate is None or not case.classifies:
        return {}
    logits, target = case.evaluate(fit.module.eval())
    nll = float(F.cross_entropy(logits.double(), target))
    top1 = float((logits.argmax(1) == target)[target != -100].double().mean())
    found = fit.metrics.get("val/nll", float("nan")), fit.metrics.get("val/top1", float("nan"))
    return {"nll": abs(found[0] - nll), "top-1": abs(found[1] - top1)}


def _check_temperature(case: Case, fit: Recording, plain: Recording, made: Made) -> dict[str, float | bool]:
    """No temperature of a fine grid is better than the one that was fitted."""
    calibrate = next(c for c in fit.callbacks if isinstance(c, lo.Calibrate))
    if case.evaluate is None or not case.classifies:
        return {"fitted": calibrate.fitted}
    logits, target = case.evaluate(fit.module.eval())
    logits, target = logits[target != -100].double(), target[target != -100]
    fitted = calibrate.calibrator(logits).clamp_min(1e-300).log()
    grid = torch.logspace(-2, 2, 401, dtype=torch.float64)
    best = min(float(F.cross_entropy(logits / temperature, target)) for temperature in grid)
    mine = float(F.nll_loss(fitted, target))
    return {"fitted": calibrate.fitted, "no temperature is better": close(mine, min(mine, best), 1e-5)}


ROWS: tuple[Row, ...] = (
    Row(
        name="AverageWeights(EMA)",
        make=lambda case, told, directory: [lo.AverageWeights(lo.EMA(decay=0.9))],
        leaves_alone=True,
        in_step=False,
        check=_check_average(ema_by_hand),
    ),
    Row(
        name="AverageWeights(BEMA)",
        make=lambda case, told, directory: [lo.AverageWeights(lo.BEMA())],
        leaves_alone=True,
        in_step=False,
        check=_check_average(bema_by_hand),
    ),
    Row(
        name="MergeCheckpoints(WSM)",
        make=lambda case, told, directory: [
            lo.MergeCheckpoints(lo.WSM(), last=2, every_n_steps=2, directory=directory / "merge")
        ],
        leaves_alone=True,
        in_step=False,
        check=_check_merge,
    ),
    Row(
        name="ReweightSamples",
        make=lambda case, told, directory: [place(lo.ReweightSamples, lo.LossBasedReweighting(temperature=0.4), told)],
        neutral=lambda case, told, directory: [place(lo.ReweightSamples, ones, told)],
        check=_check_weights,
    ),
    Row(
        name='ReweightSamples(unit="element")',
        make=lambda case, told, directory: [
            place(lo.ReweightSamples, lo.LossBasedReweighting(temperature=0.4), told, unit="element")
        ],
        neutral=lambda case, told, directory: [place(lo.ReweightSamples, ones, told, unit="element")],
    ),
    Row(
        name="ReplaceLoss(LDRLoss)",
        make=lambda case, told, directory: [place(lo.ReplaceLoss, lo.LDRLoss(), told)],
        neutral=lambda case, told, directory: [place(lo.ReplaceLoss, same_loss, told)],
        check=_check_replaced,
        for_classes=True,
    ),
    Row(
        name="WrapHead(MultiSampleDropout)",
        make=lambda case, told, directory: [place(lo.WrapHead, lo.MultiSampleDropout(num_samples=4, p=0.3), told)],
        neutral=lambda case, told, directory: [place(lo.WrapHead, one_stack, told)],
    ),
    Row(
        name="TransformBatch(Mixup)",
        make=lambda case, told, directory: [place(lo.TransformBatch, lo.Mixup(alpha=1.0), told)],
        neutral=lambda case, told, directory: [place(lo.TransformBatch, itself, told)],
    ),
    Row(
        name="Distill(VanillaKD)",
        make=lambda case, told, directory: [place(lo.Distill, lo.VanillaKD(), told, weight=10.0)],
        neutral=lambda case, told, directory: [place(lo.Distill, lo.VanillaKD(), told, weight=0.0)],
        for_classes=True,
        check=_check_teacher,
    ),
    Row(
        name="AddRegularizer(LogPartitionPenalty)",
        make=lambda case, told, directory: [place(lo.AddRegularizer, lo.LogPartitionPenalty(), told, strength=1.0)],
        neutral=lambda case, told, directory: [place(lo.AddRegularizer, nothing, told, strength=1.0)],
        check=_check_penalty,
        for_classes=True,
    ),
    Row(
        name="CombineTerms(GradientAlignment)",
        make=lambda case, told, directory: [
            place(lo.CombineTerms, lo.GradientAlignment(), told),
            place(lo.AddRegularizer, lo.LogPartitionPenalty(), told, strength=1.0),
        ],
        for_classes=True,
        check=_check_combined,
    ),
    Row(
        name="TransformGradients(ComponentwiseGradClip)",
        make=lambda case, told, directory: [lo.TransformGradients(lo.ComponentwiseGradClip(max_norm=1e-3))],
        neutral=lambda case, told, directory: [lo.TransformGradients(lo.ComponentwiseGradClip(max_norm=1e9))],
        in_step=False,
        check=_check_clipped,
    ),
    Row(
        name="LogMetrics",
        make=lambda case, told, directory: [place(lo.LogMetrics, None, told)],
        leaves_alone=True,
        in_step=False,
        check=_check_metrics,
    ),
    Row(
        name="Calibrate(TemperatureScaling)",
        make=lambda case, told, directory: [place(lo.Calibrate, lo.TemperatureScaling(), told)],
        leaves_alone=True,
        in_step=False,
        for_classes=True,
        check=_check_temperature,
    ),
)
"""The callbacks, in the order of the table."""
TOGETHER = "all that work, together"
