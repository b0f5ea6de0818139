"""The ready-made callbacks: a method and the callback of its kind in one constructor."""

import inspect
from collections.abc import Callable
from typing import Any

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.distill import Distill
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints
from lightning_objectives.callbacks.reweight_samples import ReweightSamples
from lightning_objectives.callbacks.wrap_head import WrapHead
from lightning_objectives.distillation import DualHead
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.merging import WSM
from lightning_objectives.weighting import LossBasedReweighting


def ready_made(callback: type[Any], method: type[Any]) -> Callable[..., None]:
    """The ``__init__`` of a callback that makes its method itself: both signatures in one, all keyword-only.

    >>> inspect.signature(EMACallback)
    <Signature (*, decay: float = 0.999, warmup: bool = False, power: float = 0.6666666666666666, start_step: int = 0,
    ...
    """
    own = inspect.signature(method).parameters
    _, *placing = inspect.signature(callback).parameters.values()  # the method itself comes first
    parameters = [*own.values(), *placing]

    def __init__(self: Any, **settings: Any) -> None:  # noqa: N807  # it becomes one
        bound = signature.bind(self, **settings).arguments
        mine = {name: bound[name] for name in own if name in bound}
        callback.__init__(self, method(**mine), **{p.name: bound[p.name] for p in placing if p.name in bound})

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([this, *(p.replace(kind=p.KEYWORD_ONLY) for p in parameters)])
    __init__.__signature__ = signature  # type: ignore[attr-defined]  # a function takes any attribute
    __init__.__annotations__ = {p.name: p.annotation for p in parameters}
    return __init__


class DualHeadKDCallback(Distill):
    """:class:`Distill` with :class:`DualHead`."""

    __init__ = ready_made(Distill, DualHead)


class EMACallback(AverageWeights):
    """:class:`AverageWeights` with :class:`EMA`."""

    __init__ = ready_made(AverageWeights, EMA)


class BEMACallback(AverageWeights):
    """:class:`AverageWeights` with :class:`BEMA`."""

    __init__ = ready_made(AverageWeights, BEMA)


class LossReweightingCallback(ReweightSamples):
    """:class:`ReweightSamples` with :class:`LossBasedReweighting`."""

    __init__ = ready_made(ReweightSamples, LossBasedReweighting)


class MultiSampleDropoutCallback(WrapHead):
    """:class:`WrapHead` with :class:`MultiSampleDropout`."""

    __init__ = ready_made(WrapHead, MultiSampleDropout)


class WSMCallback(MergeCheckpoints):
    """:class:`MergeCheckpoints` with :class:`WSM`."""

    __init__ = ready_made(MergeCheckpoints, WSM)
