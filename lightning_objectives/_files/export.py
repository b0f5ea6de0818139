"""Checkpoints with an average beside the raw weights into plain ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_objectives._files.names import plainly_named
from lightning_objectives._files.reading import Source, is_plain
from lightning_objectives._files.writing import OF_AVERAGES, OF_TRAINING, write_like


def export_checkpoint(file: str | Path, out: str | Path, *, weights: Literal["raw", "average"] = "average") -> Path:
    """Write the raw weights, or the average, of a checkpoint of an averaged training as a plain checkpoint.

    Args:
        file: a full checkpoint that was saved with ``AverageWeights``, or Lightning's own ``WeightAveraging``.
        out: where to; ``.safetensors`` holds the weights alone, ``.ckpt`` and ``.pt`` the checkpoint without the
            average: with the raw weights a training goes on from it as if there had never been one, with the average it
            holds nothing that belongs to the training.
        weights: which.

    Returns:
        the path of the file.

    Raises:
        ValueError: the file holds no average, or cannot be read; there is no output file then.

    Example:
        >>> import tempfile
        >>> scratch = tempfile.TemporaryDirectory()
        >>> folder = Path(scratch.name)
        >>> both = {"state_dict": {"w": torch.ones(1)}, "current_model_state": {"w": torch.zeros(1)}}
        >>> torch.save({**both, "averaging_state": {}}, folder / "both.pt")
        >>> torch.load(export_checkpoint(folder / "both.pt", folder / "raw.pt", weights="raw"))
        {'state_dict': {'w': tensor([0.])}}
        >>> scratch.cleanup()
    """
    if weights not in ("raw", "average"):
        raise ValueError(f"weights={weights!r} must be 'raw' or 'average'.")
    source, out = Source(file), Path(out)
    raw, ours = _raw(source)
    if weights == "average":
        write_like(source, out, source.tensor, place=source.place, metadata={}, leave=(*OF_TRAINING, *OF_AVERAGES))
        return out
    callbacks = {key: state for key, state in source.frame.get("callbacks", {}).items() if key not in ours}
    if "callbacks" in source.frame:
        source.frame["callbacks"] = callbacks
    values = _by_key(source, raw)

    def tensor(name: str) -> Tensor:
        return values.get(name, source.tensor(name))

    write_like(source, out, tensor, place=source.place, metadata={}, leave=OF_AVERAGES)
    return out


def _raw(source: Source) -> tuple[Mapping[str, Tensor], list[str]]:
    """The raw weights by parameter name, and the keys of the callbacks' states that belong to averages."""
    callbacks = source.frame.get("callbacks", {})
    if not isinstance(callbacks, Mapping):
        raise ValueError(f"{source.path} has callbacks of the form {type(callbacks).__name__}: it is damaged.")
    ours = [key for key, state in callbacks.items() if isinstance(state, dict) and {"averages", "raw"} <= state.keys()]
    raw: dict[str, Any] = source.frame.get("current_model_state") or {}
    for key in ours:
        raw = raw or callbacks[key]["raw"]
    if not isinstance(raw, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and is_plain(value) for key, value in raw.items()
    ):
        raise ValueError(
            f"{source.path} has raw weights that are no tensors by name: give a checkpoint as it was saved."
        )
    if not raw:
        raise ValueError(
            f"{source.path} holds no average beside raw weights: it is a plain checkpoint, the average had not begun, "
            "or it was saved with the weights alone, which are the average then. Give a full checkpoint."
        )
    return dict(plainly_named(raw.items())), ours


def _by_key(source: Source, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The raw weights by the names of the state dict, where a tied one stands under each of its names."""
    strangers = sorted(raw.keys() - source.keys.keys())
    if strangers:
        raise ValueError(f"{source.path} has raw weights that its state_dict does not know: {strangers}.")
    for name, tensor in raw.items():
        if (tensor.dtype, tuple(tensor.shape)) != source.form(name):
            raise ValueError(
                f"{source.path} has the raw weights {name} as {tensor.dtype} {tuple(tensor.shape)}, but the average as "
                f"{source.form(name)}: give a checkpoint as it was saved."
            )
    values = dict(raw)
    # Weights that were tied hold the same average, in one place or, where they were cast, in several.
    for name in source.keys.keys() - raw.keys():
        mine = source.tensor(name)
        constant = bool((mine == mine.flatten()[:1]).all())  # as a new bias or counter is, and equal to many others
        for other, tensor in raw.items():
            cast = not constant and torch.equal(mine, source.tensor(other))
            if cast or source.place(name) == source.place(other):
                values[name] = tensor
    return values
