"""Finds the weights in a checkpoint that holds other things beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

WEIGHT_KEYS = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "module", "params")
"""The entries under which training programs save the weights of a network, the first of Lightning and timm."""


def weights_key(checkpoint: Mapping[Any, Any], path: str | Path, part: str | None = None) -> str | None:
    """Return the entry of a checkpoint that holds its weights, or None if the checkpoint is a state dict itself.

    Args:
        checkpoint: the contents of the file.
        path: where it is from, for messages.
        part: the entry, if the user chooses it.

    Raises:
        ValueError: there is no such entry, or there are several.

    Example:
        >>> import torch
        >>> weights_key({"model": {"w": torch.ones(1)}, "model_ema": {"w": torch.ones(1)}, "epoch": 3}, "a.pth")
        'model'
    """
    parts = [key for key, value in checkpoint.items() if isinstance(key, str) and holds_tensors(value)]
    if part is not None:
        if part not in parts:
            raise ValueError(
                f"part={part!r}: {path} has no such part with tensors by name, but {parts}. Choose another."
            )
        return part
    if "state_dict" in checkpoint:
        return "state_dict"
    if any(isinstance(value, Tensor) for value in checkpoint.values()) and not parts:
        return None
    known = [key for key in WEIGHT_KEYS if key in parts]
    if len(known) > 1:
        raise ValueError(
            f"{path} holds weights in several parts, {known}. Choose one with part={known[0]!r} (--part {known[0]})."
        )
    if not known and parts:
        raise ValueError(
            f"{path} has no 'state_dict', but tensors in the parts {parts}, of which none has a name that programs use "
            f"for weights. Choose one with part={parts[0]!r} (--part {parts[0]})."
        )
    return known[0] if known else None


def holds_tensors(value: Any) -> bool:
    """Tell whether an entry of a checkpoint may be a state dict: it has names, and tensors behind some of them."""
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(key, str) for key in value) and any(isinstance(entry, Tensor) for entry in value.values())


def usual_place(checkpoint: Mapping[Any, Any], part: str) -> str:
    """Return the entry under which a checkpoint like this one holds its weights, whichever part was read.

    >>> import torch
    >>> usual_place({"state_dict": {"w": torch.ones(1)}, "state_dict_ema": {"w": torch.ones(1)}}, "state_dict_ema")
    'state_dict'
    """
    if part in WEIGHT_KEYS:
        return part
    return next((key for key in WEIGHT_KEYS if holds_tensors(checkpoint.get(key))), part)
