"""What trainings leave behind, and what is seen on the way, in forms that can be compared."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from lightning_objectives.testing.conformance.case import Run


def left_by(run: Run) -> dict[str, Any]:
    """All that a training leaves, by name: weights, losses, metrics, and what the callbacks keep.

    Call it before anything else draws random numbers: one of the callbacks may keep the state of the generators.
    """
    root = str(run.trainer.default_root_dir)
    kept = {"weights": run.weights, "losses": run.losses, "metrics": dict(run.trainer.callback_metrics)}
    return flat({**kept, "callbacks": states_of(run.callbacks)}, root)


def states_of(callbacks: list[Any]) -> dict[str, Any]:
    """What callbacks would put into a checkpoint now, by their keys."""
    return {callback.state_key: callback.state_dict() for callback in callbacks}


def flat(value: Any, root: str = "", name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings and sequences, copied, by their paths; file names are those below ``root``.

    >>> flat({"a": [1, {"b": "/runs/1/file"}]}, root="/runs/1")
    {'a.0': 1, 'a.1.b': './file'}
    """
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        leaf = value.replace(root, ".") if isinstance(value, str) and root else value
        return {name: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf}
    prefix = f"{name}." if name else ""
    return {path: leaf for key, part in items for path, leaf in flat(part, root, f"{prefix}{key}").items()}


def parameters_of(module: Any) -> dict[str, Tensor]:
    """Copies of the module's own parameters, without those that a plug-in lends it."""
    own = module.state_dict().keys()
    return {name: value.detach().clone() for name, value in module.named_parameters() if name in own}


class Raw(L.Callback):
    """Keeps the weights that are trained: those before the first step, and after each."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.steps = 0
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch the optimizers."""
        self.weights, self.steps = parameters_of(pl_module), 0

        def keep(*_: Any) -> None:
            self.weights, self.steps = parameters_of(pl_module), self.steps + 1

        self._hooks = [optimizer.register_step_post_hook(keep) for optimizer in trainer.optimizers]

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Watch no more."""
        while self._hooks:
            self._hooks.pop().remove()
