"""Prepares a merge for evaluation, and writes its checkpoint."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_objectives._files.writing import replaced, write_torch
from lightning_objectives._trainer.lightning import VERSION
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.ranks import on_rank_zero
from lightning_objectives._trainer.training_pass import joint_pass
from lightning_objectives._weights.contents import first_raw, mapped, tensors_in
from lightning_objectives._weights.recalibrate import recalibrate
from lightning_objectives._weights.shards import local
from lightning_objectives._weights.whole_state import persistent_tensors, stand_in
from lightning_objectives.kinds import Merge


def refuse_method(method: Merge, *, keep: str, base: str | Path | None) -> None:
    """Refuse a merge that a training cannot run, or a base that it would not use.

    Raises:
        ValueError: with the way out.
    """
    beyond = [name for name in method.asks if name != "base"]
    if beyond:
        raise ValueError(
            f"{method!r} asks for {beyond[0]}, which MergeCheckpoints does not have of its snapshots. Run it after the "
            f"training, on their files or others: merge_checkpoints(files, method, out, {beyond[0]}=...)."
        )
    if method.files is not None:
        raise ValueError(
            f"{method!r} merges {method.files} files, but a training may end with another number of snapshots. Run it "
            "after the training, on their files or others: merge_checkpoints(files, method, out)."
        )
    if base is not None and "base" not in method.asks:
        raise ValueError(
            f"base={str(base)!r} would change nothing, because {method!r} does not use a base: leave it out."
        )
    if keep == "sum" and not method.linear:
        raise ValueError(
            f"keep='sum' adds up snapshots times their shares, but {method!r} is no such sum. Use keep='files'."
        )


class EvaluatedMerge:
    """Holds the newest merge that was evaluated, and the steps of its snapshots."""

    def __init__(self, merged: Mapping[str, Tensor] | None = None, steps: Sequence[int] = ()) -> None:
        self.merged = dict(merged or {})
        self.steps = list(steps)
        self._on_device: dict[str, Tensor] = {}

    def on_device(self, module: nn.Module) -> dict[str, Tensor]:
        """The floating tensors, on the devices and in the types of those of the module."""
        if not self._on_device:
            live = persistent_tensors(module)
            self._on_device = {
                key: value.to(live[key].device, live[key].dtype)
                for key, value in self.merged.items()
                if value.is_floating_point() or value.is_complex()
            }
        return self._on_device

    def free(self) -> None:
        """Free the memory on the device."""
        self._on_device = {}


def recalibrate_merge(
    trainer: Any, module: Any, merged: Mapping[str, Tensor], norms: Sequence[_BatchNorm]
) -> dict[str, Tensor]:
    """Re-estimate the statistics of ``norms`` for a merge, and return it with them; the module stays as it was."""
    with stand_in(module, merged):
        recalibrate(module, norms, partial(joint_pass, trainer, module))
        statistics = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
        live = persistent_tensors(module).items()
        return {**merged, **{name: tensor.to("cpu", copy=True) for name, tensor in live if id(tensor) in statistics}}


def save_merged(
    trainer: Any, module: Any, merged: Mapping[str, Tensor], path: Path, *, raw: Sequence[Mapping[str, Tensor]] = ()
) -> None:
    """Write a checkpoint of the merge that ``load_from_checkpoint`` opens; all ranks take part.

    The merge stands in the module until the file is written, so that whatever the module's hooks build, and objects
    that the file pickles, hold it too.

    Args:
        trainer: the trainer.
        module: its module.
        merged: the merge, by name.
        path: the file.
        raw: other weights that the file must not hold in the merge's place, such as the raw ones beside an average.

    Raises:
        RuntimeError: the file would hold other weights than the merge.
    """
    with stand_in(module, merged) as before:
        checkpoint = mapped(_checkpoint(trainer, module), _on_cpu)
        entries = dict(tensors_in(checkpoint["state_dict"]))
        for weights in (before, *raw):
            weights = {name: local(value) for name, value in weights.items() if name in merged}
            key = first_raw(entries, merged, persistent_tensors(module), weights)
            if key is not None:
                raise RuntimeError(
                    f"{path.name} would hold the trained weights {key!r} in the place of the merge, because "
                    f"{type(module).__name__} takes them from a copy that was made before. Take them from the module's "
                    "parameters in state_dict or on_save_checkpoint. The snapshots of keep='files' stay in "
                    f"{path.parent}, and `lightning-objectives merge` merges them."
                )
        on_rank_zero(trainer, lambda: write_checkpoint(checkpoint, path))


def _checkpoint(trainer: Any, module: Any) -> dict[str, Any]:
    """Make what Lightning writes with ``save_weights_only``: hyperparameters, and what the user's classes add to it."""
    checkpoint = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": VERSION,
        "state_dict": module.state_dict(),
    }
    data_module = getattr(trainer, "datamodule", None)
    for owner in (module, data_module):
        if owner is not None and owner.hparams:
            if hasattr(owner, "_hparams_name"):
                checkpoint[owner.CHECKPOINT_HYPER_PARAMS_NAME] = owner._hparams_name
            checkpoint[owner.CHECKPOINT_HYPER_PARAMS_KEY] = dict(owner.hparams)
    data_state = data_module.state_dict() if data_module is not None else {}
    if data_state:
        checkpoint[type(data_module).__qualname__] = data_state
    hook = module.on_save_checkpoint  # An average may have patched it, to put itself into the checkpoint.
    (hook.__wrapped__ if isinstance(hook, Patch) else hook)(checkpoint)
    return checkpoint


def _on_cpu(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, which appears whole or not at all."""
    with replaced(path) as temporary:
        write_torch(temporary, checkpoint)


def new_folder(path: Path, used: Sequence[Path]) -> Path:
    """Make a folder at this path, or at the next numbered one that is free or empty, and return it.

    Args:
        path: the path.
        used: folders that others write to.
    """
    folder, version = path, 0
    while folder in used or (folder.exists() and any(folder.iterdir())):
        version += 1
        folder = path.with_name(f"{path.name}-v{version}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
