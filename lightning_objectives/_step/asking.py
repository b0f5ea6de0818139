"""Reads what a metric asks for: predictions and target in this order, or values by the names of ``update``."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torchmetrics import Metric, MetricCollection

SHOWN = ("features", "group", "head", "loader", "logits", "preds", "target", "teacher_features")
"""What a metric may name; ``preds`` are the logits under the name in torchmetrics."""
_TELLING = ("features", "group", "head", "loader", "teacher_features")
"""The names that show that a metric takes what it names, and not ``(preds, target)`` in this order."""


def asked(metric: Metric) -> tuple[str, ...]:
    """The names that a metric asks for; empty for a metric of ``(preds, target)``, by whatever names.

    Raises:
        ValueError: a name that is not shown, beside one that is, or instead of one.

    >>> from lightning_objectives.metrics import BrierScore, RankMe
    >>> asked(RankMe()), asked(BrierScore())
    (('features',), ())
    """
    parameters = [*inspect.signature(metric.update).parameters.values()]
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = tuple(p.name for p in parameters if p.default is p.empty and p.kind not in many)
    takes_two = len(parameters) > 1 or any(p.kind in many for p in parameters)
    by_name = bool({*_TELLING} & {*names}) or not takes_two
    for name in names:
        close = get_close_matches(name, SHOWN if by_name else _TELLING, n=1, cutoff=0.8)
        if name not in SHOWN and (by_name or close):
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"{type(metric).__name__}.update asks for {name!r}, which LogMetrics does not have. {hint}A metric may "
                f"name {', '.join(SHOWN)}, or take (preds, target)."
            )
    return names if by_name else ()


def split(metrics: Metric | MetricCollection | None) -> tuple[Metric | MetricCollection | None, MetricCollection]:
    """The metrics of ``(preds, target)``, None without one, and those that ask for values by name.

    Raises:
        ValueError: a metric asks for something that is not shown.
    """
    whole = metrics if isinstance(metrics, MetricCollection) else MetricCollection([] if metrics is None else [metrics])
    members = dict(whole.items(keep_base=True, copy_state=False))
    asking = {name: metric for name, metric in members.items() if asked(metric)}
    others = {name: metric for name, metric in members.items() if name not in asking}
    if asking:
        metrics = collection_like(whole, others) if others else None
    return metrics, collection_like(whole, asking)


def collection_like(whole: MetricCollection, members: Mapping[str, Metric]) -> MetricCollection:
    """Some metrics under the names that they have in a collection."""
    named: Any = dict(members)  # its annotation has Metric | MetricCollection as values, and dict is invariant
    return MetricCollection(named, prefix=whole.prefix, postfix=whole.postfix, compute_groups=False)
