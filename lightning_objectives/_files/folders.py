"""Finds the weights in a folder."""

import json
import re
from pathlib import Path

DISTRIBUTED = ".metadata"
"""The file by which a folder of ``torch.distributed.checkpoint`` is known."""
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files in which Hugging Face's ``save_pretrained`` writes weights."""


def weights_in(folder: Path) -> Path:
    """Return the one file of weights, or the index of several, in a folder of Hugging Face's.

    Raises:
        ValueError: there is none, or more than one.
    """
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if len(there) == 1:
        return there[0]
    if there:
        raise ValueError(
            f"{folder} is a directory with weights in several files, {[path.name for path in there]}, which may be "
            "different ones: give one of the files."
        )
    raise ValueError(
        f"{folder} is a directory, but has neither {', '.join(WEIGHTS)} nor {DISTRIBUTED}: give a file of weights, or "
        "a folder that Hugging Face's save_pretrained or torch.distributed.checkpoint wrote."
    )


def step_of(folder: Path) -> int | None:
    """Return the step that Hugging Face's Trainer wrote into a folder or its name, ``checkpoint-N``."""
    try:
        step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        step = None
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    if isinstance(step, int):
        return step
    return int(match[1]) if match else None
