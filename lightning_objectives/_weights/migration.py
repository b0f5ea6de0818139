"""Changes what averages remember as a module's ``on_load_checkpoint`` changes the weights of an older checkpoint."""

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._files.names import plain_name, plainly_named
from lightning_objectives._trainer.carried import saved_states
from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._trainer.patch import Patch

STATE = "AverageWeights"
"""What the keys of the averages' states begin with, those of subclasses too."""
REBUILT = "rebuilt"
"""The entry of a state that says whether hooks changed the file's weights when it was saved."""


class MigratedStates:
    """Lets the states of averages in a checkpoint follow the module's ``on_load_checkpoint``.

    If the hook renames, converts, adds or drops weights, it runs once more with each list of tensors of a state in
    place of the file's weights. If it only undoes what a hook did when the file was saved, the states stay: they were
    made before that.

    Args:
        module: the module whose hook is followed.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._patch = Patch(module, "on_load_checkpoint", self._load)

    def remove(self) -> None:
        """Remove the patch; does nothing the second time."""
        self._patch.remove()

    def _load(self, inner: Callable[..., Any], checkpoint: dict[str, Any]) -> Any:
        states = saved_states(checkpoint, STATE)
        others = getattr(getattr(inner, "around", None), "__self__", None)
        # Of several averages, the innermost does the work. FSDP2 reads the weights of its folders before the hook.
        if isinstance(others, MigratedStates) or not states or "state_dict" not in checkpoint:
            return inner(checkpoint)
        before = _copied(checkpoint)
        result = inner(checkpoint)
        after = checkpoint["state_dict"]
        if not same_entries(before["state_dict"], after):
            hook = _Rerun(self._module, inner, before, after)
            for state in states.values():
                if self._was_rebuilt(state, hook):
                    continue
                hook.migrate(state)
        return result

    def _was_rebuilt(self, state: Mapping[str, Any], hook: "_Rerun") -> bool:
        """Whether hooks changed the file's weights when it was saved, so that only they need to be changed back."""
        if REBUILT in state:
            return bool(state[REBUILT])
        if not (_changes_files(self._module) and all(map(self._fits, _tensors_of(state)))):
            return False
        changed = hook.changed_names() & {name for tensors in _tensors_of(state) for name in tensors}
        if changed:
            rank_zero_warn(
                f"{type(self._module).__name__}.on_load_checkpoint changes {sorted(changed)[:5]} of the checkpoint, "
                "which has averages beside them. They are taken as they are, as if the hook undid what the module's "
                "own hooks did when the file was saved. If it converts an older file instead, begin the averages anew."
            )
        return True

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        network: nn.Module = self._module
        own = dict(plainly_named([*network.named_parameters(), *network.named_buffers()]))
        return all(name in own and own[name].shape == tensor.shape for name, tensor in tensors.items())


class _Rerun:
    """Runs a module's ``on_load_checkpoint`` once more with other weights.

    Args:
        module: the module.
        hook: its ``on_load_checkpoint``.
        before: the checkpoint that the hook got.
        after: the state dict that it made.
    """

    def __init__(self, module: Any, hook: Callable[..., Any], before: dict[str, Any], after: Mapping[str, Any]) -> None:
        self._module = module
        self._hook = hook
        self._before = before
        self._after = after
        self._keys = {plain_name(key): key for key in before["state_dict"]}

    def migrate(self, state: MutableMapping[str, Any]) -> None:
        """Change all tensors of a state, and the names of those that were frozen."""
        known: set[str] = set()
        for tensors in _tensors_of(state):
            made = self._run(tensors)
            new = {name: made[name] for name in self._derived(tensors)}
            known |= new.keys()
            tensors.clear()
            tensors.update(new)
        # Weights that the hook added join the average as those do that become trainable.
        state["frozen"] = sorted(set(map(plain_name, self._after)) - known)

    def changed_names(self) -> set[str]:
        """The names whose tensors the hook changed."""
        before = {name: self._before["state_dict"][key] for name, key in self._keys.items()}
        after = {plain_name(key): value for key, value in self._after.items()}
        return {name for name in before.keys() & after.keys() if before[name] is not after[name]}

    def _derived(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """The names of the entries that the hook makes from these, found by marks in their place."""
        marks = {
            name: torch.full_like(t, torch.nan) if t.is_floating_point() or t.is_complex() else t.clone()
            for name, t in tensors.items()
        }
        ids = set(map(id, marks.values()))
        without = {plain_name(key) for key, value in self._after.items() if _has_nan(value)}
        return [
            name
            for name, value in self._run(marks).items()
            if id(value) in ids or (_has_nan(value) and name not in without)
        ]

    def _run(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        checkpoint = _copied(self._before)
        checkpoint["state_dict"].update({self._keys.get(name, name): tensor for name, tensor in tensors.items()})
        try:
            self._hook(checkpoint)
        except Exception as error:
            raise RuntimeError(
                f"{type(self._module).__name__}.on_load_checkpoint changes the weights of the checkpoint, so the "
                f"averages in it must be changed too, but with these in their place it fails: {error!r}. Let it change "
                "checkpoint['state_dict'] alone, or go on without AverageWeights."
            ) from error
        return {plain_name(key): value for key, value in checkpoint["state_dict"].items()}


def same_entries(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two state dicts hold the very same tensors under the same names."""
    return one.keys() == other.keys() and all(value is other[key] for key, value in one.items())


def _tensors_of(state: Mapping[str, Any]) -> Iterable[dict[str, Tensor]]:
    """The lists of tensors in a state of averages, each by name."""
    lists = [state["raw"], state["statistics"]]
    lists += [tensors for average in state["averages"].values() for tensors in average["slots"].values()]
    return [tensors for tensors in lists if tensors]


def _copied(value: Any) -> Any:
    """Copy nested dictionaries and lists, but nothing in them."""
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update({key: _copied(inner) for key, inner in value.items()})
        return result
    return list(map(_copied, value)) if type(value) is list else value


def _has_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.isnan().any())


def _changes_files(module: Any) -> bool:
    """Whether the module has hooks of its own that may change what it saves."""
    save = module.on_save_checkpoint
    save = save.__wrapped__ if isinstance(save, Patch) else save
    own = not getattr(save, "__module__", "").endswith(".core.hooks")
    return own or "state_dict" in vars(module) or type(module).state_dict is not nn.Module.state_dict
