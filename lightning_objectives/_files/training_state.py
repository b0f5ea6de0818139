"""Tells what of a checkpoint belongs to the training that wrote it, and not to the weights."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_objectives._files.source import Source

TRAINING_KEYS = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "MixedPrecision", "amp_scaling_state")
"""What a Lightning checkpoint holds beside the weights so that its training can go on."""
AVERAGING_KEYS = ("current_model_state", "averaging_state")
"""What Lightning's own ``WeightAveraging`` adds to a checkpoint."""
_STATE_WORDS = frozenset(
    "ema optimizer optimizers optim opt scheduler schedulers sched scaler amp criterion rng random".split()
)
"""Words in the names under which training programs save the state of a training."""
_PROGRESS_WORDS = frozenset(
    "epoch epochs iter iteration iterations metric metrics best loss losses acc acc1 top1".split()
)
"""Words in the names under which they save how far the training was."""


def entries_beside_weights(source: Source) -> tuple[dict[str, Any], list[str]]:
    """Return what a merged file gets beside its weights, and the names of what it does not.

    A merge is of no single training. So it gets no state of an optimizer, a scheduler or a scaler, no second set of
    weights, and no epoch. From a checkpoint of Lightning it gets all else, as ``load_from_checkpoint`` may need it.
    From any other file it gets only what holds no tensors.
    """
    beside = {key: value for key, value in source.checkpoint.items() if key not in (source.place, source.part)}
    belongs = _belongs_to_lightnings_training if source.is_lightning else _belongs_to_training
    left_out = [key for key, value in beside.items() if belongs(key, value)]
    return {key: value for key, value in beside.items() if key not in left_out}, sorted(map(str, left_out))


def _belongs_to_lightnings_training(key: Any, value: Any) -> bool:
    return key in TRAINING_KEYS + AVERAGING_KEYS or (bool(_words(key) & _STATE_WORDS) and _has_tensor(value))


def _belongs_to_training(key: Any, value: Any) -> bool:
    return bool(_words(key) & (_STATE_WORDS | _PROGRESS_WORDS)) or _has_tensor(value)


def _words(key: Any) -> set[str]:
    return set(re.split(r"[\W_]+", str(key).lower()))


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)
