"""Explains errors about checkpoints: which file cannot be read or loaded, why, and what to do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from torch import Tensor

from lightning_objectives._files.intact import check_sums, hint
from lightning_objectives._trainer.patch import Patch


def explain_read_errors(trainer: Any) -> Patch:
    """Make errors about a checkpoint that cannot be read say which file, and why, until the patch is removed.

    The patch also compares the checksums first, which Lightning and torch do not. All callbacks of a trainer share one
    patch.
    """
    patch = vars(trainer.strategy).get("load_checkpoint")
    while isinstance(patch, Patch) and patch.around is not _load:
        patch = patch.inner
    return patch if isinstance(patch, Patch) else Patch(trainer.strategy, "load_checkpoint", _load)


def _load(inner: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    file = Path(path)
    if not file.is_file():
        return inner(path, *args, **kwargs)  # It is missing, a folder, or on another machine.
    try:
        check_sums(file)
        checkpoint = inner(path, *args, **kwargs)
    except Exception as error:  # torch raises many types: RuntimeError, UnpicklingError, EOFError, ...
        if not is_zipfile(file):
            raise ValueError(
                f"The checkpoint {path} is cut off, or is no checkpoint: its {file.stat().st_size} bytes do not end "
                f"with a table of contents. Nothing was loaded; use an earlier file.{hint(file)}"
            ) from error
        raise ValueError(
            f"The checkpoint {path} cannot be read: it is damaged, or holds more than tensors and plain values, which "
            "could run code. Nothing was loaded; use an earlier file, or, if you trust it, weights_only=False. "
            f"({type(error).__name__}: {error})"
        ) from error
    forms = {"state_dict": Mapping, "callbacks": Mapping, "pytorch-lightning_version": str}
    # A strategy that shards has put the weights into the module already, and does not return them.
    shards = getattr(getattr(inner, "__self__", None), "restore_checkpoint_after_setup", False)
    if (
        not (isinstance(checkpoint, dict) and ("state_dict" in checkpoint or shards))
        or any(not isinstance(checkpoint[part], form) for part, form in forms.items() if part in checkpoint)
        or any(isinstance(state, Tensor) for state in checkpoint.get("callbacks", {}).values())
    ):
        raise ValueError(
            f"The checkpoint {path} is none of Lightning's: it has no 'state_dict', or parts of another form. "
            "Nothing was loaded. To load weights alone, use "
            "module.load_state_dict(torch.load(path, weights_only=True))."
        )
    return checkpoint


@contextmanager
def taking(key: str, trainer: Any = None) -> Iterator[None]:
    """Make any error within the block name the callback and the checkpoint whose state it loads.

    Args:
        key: the state key of the callback.
        trainer: the trainer, which knows the file; None if there is none.

    Raises:
        ValueError: if anything was raised within the block.
    """
    try:
        yield
    except Exception as error:  # A state may have any form, and each form fails in its own way.
        file = f" {trainer.ckpt_path}" if getattr(trainer, "ckpt_path", None) else ""
        # Lightning keeps a checkpoint that it could not restore, and a later fit would go on from it.
        getattr(getattr(trainer, "_checkpoint_connector", None), "_loaded_checkpoint", {}).clear()
        raise ValueError(
            f"The checkpoint{file} holds a state of {key} that cannot be loaded: it is damaged, or of another network "
            f"or version ({type(error).__name__}: {error}). Use another checkpoint, or go on without this callback."
        ) from error
