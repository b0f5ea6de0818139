"""Checkpoints that cannot be read, or hold a state that cannot be taken: errors that name the file and the way out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from torch import Tensor

from lightning_objectives._files.intact import check_sums, hint
from lightning_objectives._trainer.patch import Patch


def name_unreadable(trainer: Any) -> Patch:
    """Until the patch is removed, a checkpoint that cannot be read is an error that says which file, and why.

    Its checksums are compared first, which Lightning and torch do not. The callbacks of a trainer share one patch.
    """
    patch = vars(trainer.strategy).get("load_checkpoint")
    while isinstance(patch, Patch) and patch.around is not _load:
        patch = patch.inner
    return patch if isinstance(patch, Patch) else Patch(trainer.strategy, "load_checkpoint", _load)


def _load(inner: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    file = Path(path)
    if not file.is_file():
        return inner(path, *args, **kwargs)  # missing, or no single file of this machine
    try:
        check_sums(file)
        found = inner(path, *args, **kwargs)
    except Exception as error:  # torch raises what comes: RuntimeError, UnpicklingError, EOFError, ...
        if not is_zipfile(file):
            raise ValueError(
                f"The checkpoint {path} is cut off, or no checkpoint: its {file.stat().st_size} bytes do not end with "
                f"a table of contents. Nothing was loaded; use an earlier file.{hint(file)}"
            ) from error
        raise ValueError(
            f"The checkpoint {path} cannot be read: it is damaged, or holds more than tensors and plain values, which "
            "could run code. Nothing was loaded; use an earlier file, or, if you trust it, weights_only=False. "
            f"({type(error).__name__}: {error})"
        ) from error
    forms = {"state_dict": Mapping, "callbacks": Mapping, "pytorch-lightning_version": str}
    # A strategy that shards has put the weights into the module already, and does not give them.
    shards = getattr(getattr(inner, "__self__", None), "restore_checkpoint_after_setup", False)
    if (
        not (isinstance(found, dict) and ("state_dict" in found or shards))
        or any(not isinstance(found[part], form) for part, form in forms.items() if part in found)
        or any(isinstance(state, Tensor) for state in found.get("callbacks", {}).values())
    ):
        raise ValueError(
            f"The checkpoint {path} is none of Lightning's: it has no 'state_dict', or parts of another form. "
            "Nothing was loaded; for weights alone use module.load_state_dict(torch.load(path, weights_only=True))."
        )
    return found


@contextmanager
def taking(key: str, trainer: Any = None) -> Iterator[None]:
    """Within, what a checkpoint holds for a callback is taken; what fails is an error that names both.

    Raises:
        ValueError: of whatever was raised.
    """
    try:
        yield
    except Exception as error:  # what was saved may be of any form, and each form fails in its own way
        file = f" {trainer.ckpt_path}" if getattr(trainer, "ckpt_path", None) else ""
        # Lightning keeps what it could not restore, and a later fit without a checkpoint would go on from it.
        getattr(getattr(trainer, "_checkpoint_connector", None), "_loaded_checkpoint", {}).clear()
        raise ValueError(
            f"The checkpoint{file} holds a state of {key} that cannot be taken: it is damaged, or of "
            f"another network or version ({type(error).__name__}: {error}). Use another checkpoint, or go on without "
            "this callback."
        ) from error
