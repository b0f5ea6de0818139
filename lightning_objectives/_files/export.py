"""Turns a checkpoint with an average beside the raw weights into a plain one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_objectives._files.names import plainly_named
from lightning_objectives._files.reading import open_source
from lightning_objectives._files.source import Source, is_plain
from lightning_objectives._files.training_state import AVERAGING_KEYS, entries_beside_weights
from lightning_objectives._files.writing import refuse_inputs, write_like


def export_checkpoint(
    file: str | Path,
    out: str | Path,
    *,
    weights: Literal["raw", "average"] = "average",
    force: bool = False,
) -> Path:
    """Write the raw weights, or the average, of a training with an average as a plain checkpoint.

    Args:
        file: a full checkpoint that was saved with ``AverageWeights``, or Lightning's own ``WeightAveraging``: a file,
            or a folder, as FSDP2 saves it with ``save_distributed_checkpoint=True``.
        out: the file to write. A ``.safetensors`` file holds the weights alone. A ``.ckpt`` or ``.pt`` file holds the
            checkpoint without the average: with the raw weights, a training goes on from it as if there had never been
            an average; with the average, it holds nothing that belongs to the training.
        weights: which weights to write.
        force: also write over ``file`` itself. Any other file at ``out`` is replaced in any case.

    Returns:
        the path of the written file.

    Raises:
        ValueError: the file holds no average, or cannot be read, or is ``out``; no file is written then.

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
        raise ValueError(f"weights={weights!r} must be 'raw' or 'average': a checkpoint holds no other weights.")
    if not force:
        refuse_inputs(Path(out), [Path(file)])
    source, out = open_source(file), Path(out)
    averages = states_of_averages(source)
    raw = _raw_weights(source, averages)
    if weights == "raw":
        for key in averages:
            del source.checkpoint["callbacks"][key]
        tensors = parameters_replaced(source, raw)
        beside = {key: value for key, value in source.checkpoint.items() if key not in AVERAGING_KEYS}
        write_like(source, out, tensors.__getitem__, storage_key=source.storage_key, beside=beside)
    else:
        beside, _ = entries_beside_weights(source)
        write_like(source, out, source.tensor, storage_key=source.storage_key, beside=beside)
    return out


def states_of_averages(source: Source) -> dict[str, Any]:
    """The states of the callbacks that hold an average and the raw weights, by the callbacks' keys."""
    callbacks = source.checkpoint.get("callbacks", {})
    if not isinstance(callbacks, Mapping):
        raise ValueError(
            f"{source.path} has callbacks of the form {type(callbacks).__name__} and not a state by name: it is "
            "damaged. Give another checkpoint."
        )
    return {
        key: state
        for key, state in callbacks.items()
        if isinstance(state, dict) and {"averages", "raw"} <= state.keys()
    }


def _raw_weights(source: Source, averages: Mapping[str, Any]) -> dict[str, Tensor]:
    """The raw weights by plain name of the parameter: Lightning's own ones, or those of the first average."""
    raw: Any = source.checkpoint.get("current_model_state") or {}
    for state in averages.values():
        raw = raw or state["raw"]
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
    return dict(plainly_named(raw.items()))


def parameters_replaced(source: Source, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the state dict by plain name, with the raw weights in place of the averages.

    A raw weight stands in the file under one name only, but takes the place of its average under all names tied to it.
    """
    unknown = sorted(raw.keys() - source.keys.keys())
    if unknown:
        raise ValueError(
            f"{source.path} has raw weights that its state_dict does not know: {unknown}. Give a checkpoint as it was "
            "saved."
        )
    for name, tensor in raw.items():
        if (tensor.dtype, tuple(tensor.shape)) != source.form(name):
            raise ValueError(
                f"{source.path} has the raw weights {name} as {tensor.dtype} {tuple(tensor.shape)}, but the average as "
                f"{source.form(name)}: give a checkpoint as it was saved."
            )
    tensors = {name: source.tensor(name) for name in source.keys} | dict(raw)
    # Tied weights have one average, which lies in one place or, if they were cast, in several equal ones.
    for name in source.keys.keys() - raw.keys():
        average = tensors[name]
        # A new bias or counter is constant, and so equal to many others that it is not tied to.
        constant = bool((average == average.flatten()[:1]).all())
        for other, tensor in raw.items():
            equal = not constant and torch.equal(average, source.tensor(other))
            if equal or source.storage_key(name) == source.storage_key(other):
                tensors[name] = tensor
    return tensors
