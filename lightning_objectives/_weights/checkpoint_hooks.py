"""Lets an average stand in a module while its checkpoint is made, so that all hooks build the file from it."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lightning_objectives._trainer.carried import CARRIED
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._weights.averages import Averages
from lightning_objectives._weights.contents import tensors_in
from lightning_objectives._weights.migration import REBUILT, same_entries

_STATES = {"callbacks", "optimizer_states", "lr_schedulers", "loops"}
"""The parts of a checkpoint that hold no weights of the module."""


class CheckpointHooks:
    """Puts an average into the checkpoints of a training, whatever the hooks of the module and of callbacks build.

    The callbacks' states are made while the raw weights stand in the module. After that the average stands in it, if a
    hook could build something from the weights. A plain ``state_dict`` needs no swap.

    Args:
        trainer: the trainer.
        module: its module.
        averages: the averages of the module.
        name: the average that the checkpoints hold.
        state_key: the key of the state, in a checkpoint, that holds the raw weights.
    """

    def __init__(self, trainer: Any, module: Any, averages: Averages, name: str, state_key: str) -> None:
        self._trainer = trainer
        self._module = module
        self._averages = averages
        self._name = name
        self._keys = (state_key, CARRIED + state_key)
        self._standing = ExitStack()
        self._entered = self._stands = False
        self._filled: dict[str, Any] | None = None
        """The state dict that we filled, if hooks got one."""
        self._patches = [
            Patch(trainer.precision_plugin, "on_save_checkpoint", self._after_states),
            Patch(module, "on_save_checkpoint", self._last),
        ]

    def remove(self) -> None:
        """Remove the patches; does nothing the second time."""
        self._leave()
        for patch in self._patches:
            patch.remove()

    def _after_states(self, inner: Callable[..., Any], checkpoint: dict[str, Any]) -> Any:
        self._leave()  # A hook may have failed at the last checkpoint.
        result = inner(checkpoint)
        self._enter(checkpoint)
        return result

    def _last(self, inner: Callable[..., Any], checkpoint: dict[str, Any]) -> Any:
        try:
            self._enter(checkpoint)  # A checkpoint of weights alone comes here first.
            result = inner(checkpoint)
            self._note_rebuilt(checkpoint)
            if self._entered and not self._stands and self._averages.holds(_content(checkpoint), self._name):
                self._stand(checkpoint)  # For example, a module among the hyperparameters is the network's own.
            if self._stands:
                self._keep(checkpoint)
            return result
        finally:
            self._leave()

    def _enter(self, checkpoint: dict[str, Any]) -> None:
        averages = self._averages
        averages.update()
        if self._entered or not averages.updates or averages.standing == self._name:
            return
        self._entered = True
        plain = averages.is_plain(checkpoint.get("state_dict"))
        if not plain or self._hooks():
            self._stand(checkpoint)
        if plain:
            averages.fill(checkpoint["state_dict"], self._name)
            self._filled = dict(checkpoint["state_dict"])
        else:
            checkpoint["state_dict"] = self._trainer.strategy.lightning_module_state_dict()

    def _stand(self, checkpoint: dict[str, Any]) -> None:
        """Let the average stand in the module, and our state keep the raw weights that stood there."""
        self._standing.enter_context(self._averages.stand_in(self._name))
        self._stands = True
        for state in self._states(checkpoint):
            state["raw"] = self._averages.state_dict()["raw"]

    def _note_rebuilt(self, checkpoint: dict[str, Any]) -> None:
        """Note in our state whether the file's weights are those that we filled in, for :mod:`.migration`."""
        if self._entered:
            rebuilt = self._filled is None or not same_entries(self._filled, checkpoint["state_dict"])
            for state in self._states(checkpoint):
                state[REBUILT] = rebuilt

    def _states(self, checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
        """Our state in a checkpoint, if it has one."""
        states = map(checkpoint.get("callbacks", {}).get, self._keys)
        return [state for state in states if state is not None]

    def _leave(self) -> None:
        self._entered = self._stands = False
        self._filled = None
        self._standing.close()

    def _hooks(self) -> bool:
        """Whether the module or a callback has a hook of its own that may build weights into the checkpoint."""
        owners = [getattr(callback, "carried", callback) for callback in self._trainer.callbacks]
        if any("on_save_checkpoint" in vars(owner) for owner in owners):
            return True
        hooks = [type(owner).on_save_checkpoint for owner in owners] + [self._patches[-1].__wrapped__]
        return any(not hook.__module__.endswith((".callbacks.callback", ".core.hooks")) for hook in hooks)

    def _keep(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint keep the average after the raw weights are back."""
        # In one call, so that an object that lies in several places is copied once.
        content = {key: value for key, value in checkpoint.items() if key not in _STATES}
        checkpoint |= self._averages.kept(content, self._name)
        raw = self._averages.first_raw(dict(tensors_in(checkpoint.get("state_dict"))), self._name)
        if raw is not None:
            raise RuntimeError(
                f"The checkpoint would hold the raw weights {raw!r} in the place of the average, because "
                f"{type(self._module).__name__} or a callback takes them from a copy that was made before. Take them "
                "from the module's parameters in state_dict or on_save_checkpoint, or pass primary=False to "
                "AverageWeights."
            )


def _content(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint, besides the state dict, that may hold weights of the module."""
    return {key: value for key, value in checkpoint.items() if key not in _STATES and key != "state_dict"}
