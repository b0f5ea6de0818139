"""Finds the weights in a checkpoint that holds other things beside them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_objectives._files.source import first_names

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
    if part is None and "state_dict" in checkpoint:
        return "state_dict"
    return choose_part(parts, path, part)


def choose_part(parts: Sequence[str], path: str | Path, part: str | None) -> str | None:
    """Choose the part with the weights among all parts of a checkpoint that hold tensors by name.

    Args:
        parts: their names.
        path: where the checkpoint is from, for messages.
        part: the one that the user chose.

    Raises:
        ValueError: there is no such part, or it is not clear which one is meant.
    """
    if part is not None:
        if part not in parts:
            raise ValueError(
                f"part={part!r}: {path} has no such part with tensors by name, but {first_names(parts)}. Choose one."
            )
        return part
    known = [key for key in WEIGHT_KEYS if key in parts]
    if "state_dict" in known or len(known) == 1:
        return known[0]
    if not parts:
        return None
    if known:
        raise ValueError(
            f"{path} holds weights in several parts, {known}. Choose one with part={known[0]!r} (--part {known[0]})."
        )
    raise ValueError(
        f"{path} has no 'state_dict', but tensors in the parts {first_names(parts)}, of which none has a name that "
        f"programs use for weights. Choose one with part={parts[0]!r} (--part {parts[0]})."
    )


def usual_part(parts: Iterable[str], part: str) -> str:
    """Return the part in which a checkpoint like this one holds its weights, whichever part was read.

    >>> usual_part(["state_dict", "state_dict_ema"], "state_dict_ema")
    'state_dict'
    """
    return part if part in WEIGHT_KEYS else next((key for key in WEIGHT_KEYS if key in parts), part)


def holds_tensors(value: Any) -> bool:
    """Tell whether an entry of a checkpoint may be a state dict: it has names, and tensors behind some of them."""
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(key, str) for key in value) and any(isinstance(entry, Tensor) for entry in value.values())
