"""Sees what a fit does, without this package: raw weights, gradients, losses, files, and what is left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

State = dict[str, Tensor]


@dataclass
class Recording:
    """What one fit did."""

    directory: Path
    still: bool = False
    """Whether the learning rate is 0, so that the gradients of all steps can be compared with another run's."""
    weights: list[State] = field(default_factory=list)
    """The raw weights at the start of the training, and after each batch with an optimizer step."""
    gradients: list[list[Tensor | None]] = field(default_factory=list)
    """The gradients that each optimizer step got."""
    losses: list[float] = field(default_factory=list)
    logged: list[dict[str, float]] = field(default_factory=list)
    """The logged values after each batch."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The logged values after the last validation."""
    files: dict[Path, int] = field(default_factory=dict)
    """The checkpoints, with the number of weights that were recorded when they were saved."""
    trainer: Any = None
    module: Any = None
    traces: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    """What was left on the module, by Lightning too."""
    ours: list[str] = field(default_factory=list)
    """Objects of this package that are still attached to the module, the strategy or the optimizers."""
    kept: list[str] = field(default_factory=list)
    """Where the package keeps the user's callbacks, such as in the hyperparameters of the module."""
    callbacks: list[Any] = field(default_factory=list)
    """The callbacks that were trained, which may be copies."""
    copied: bool = False
    """Whether the package copied the callback that watches, before the training began."""
    warned: list[str] = field(default_factory=list)
    """What this package warned of."""
    steps: int = 0


RECORDING: Recording
"""The recording of the fit that runs; the package may copy the callback, but not this."""


def watch(lightning: str) -> Any:
    """A callback that watches; it must be the first of the list."""

    class Watch(import_module(lightning).Callback):
        is_copy = False

        def __copy__(self) -> Any:
            copy = object.__new__(type(self))
            copy.is_copy = True
            return copy

        def __deepcopy__(self, memo: Any) -> Any:
            return self.__copy__()

        def __reduce__(self) -> Any:  # its class is local, so a package that saves it needs something else to save
            return str, ("a callback that watched",)

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit":
                RECORDING.trainer, RECORDING.module = trainer, pl_module
                RECORDING.copied = self.is_copy
                RECORDING.callbacks = list(trainer.callbacks)
                RECORDING.traces = traces(pl_module)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            RECORDING.weights.append(state_of(pl_module))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if RECORDING.steps:
                RECORDING.weights.append(state_of(pl_module))
                RECORDING.steps = 0
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            # Lightning divides the loss by the number of batches that it accumulates.
            RECORDING.losses.append(float(loss) * trainer.accumulate_grad_batches if loss is not None else 0.0)
            RECORDING.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            RECORDING.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._save(trainer, "validation")

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self._save(trainer, "epoch")

        def _save(self, trainer: Any, name: str) -> None:
            if trainer.sanity_checking or not trainer.fit_loop._data_source.is_defined():
                return
            path = RECORDING.directory / f"{name}.ckpt"
            trainer.save_checkpoint(path)
            RECORDING.files[path] = len(RECORDING.weights)

    return Watch()


@contextmanager
def recording(directory: Path, watched: str, *, still: bool) -> Iterator[Recording]:
    """Record the fit of a Trainer of the Lightning ``watched``; at its end, look for what is left."""
    global RECORDING
    RECORDING = recorded = Recording(directory, still=still)

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups if still else ():
            group["lr"] = 0.0

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        # Lightning computes the gradients within the step, so they are there after it only.
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        recorded.gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        recorded.steps += 1

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
        if recorded.module is not None:
            recorded.left = left_behind(recorded.traces, traces(recorded.module))
            trainer = recorded.trainer
            roots = {"module": recorded.module, "strategy": trainer.strategy, "precision": trainer.precision_plugin}
            roots |= {f"optimizer {i}": optimizer for i, optimizer in enumerate(trainer.optimizers)}
            found = {path: thing for name, root in roots.items() for path, thing in ours(root, name)}
            # The user's callbacks in the package's own settings are what the package keeps, and not what we left.
            base = import_module(watched).Callback
            recorded.kept = sorted(path for path, thing in found.items() if isinstance(thing, base))
            recorded.ours = sorted(found.keys() - set(recorded.kept))


def state_of(module: nn.Module) -> State:
    """A copy of the parameters and buffers, by name."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def traces(module: nn.Module) -> dict[str, int]:
    """Everything that could be left on a module, by name: attributes, hooks, functions, parameters, keys of its state.

    The number of a name changes if another object takes the place.
    """
    found = {f"state_dict {key}": 0 for key in module.state_dict()}
    for path, child in module.named_modules():
        found[f"the class of {path}"] = id(type(child))
        found[f"the forward of the class of {path}"] = id(type(child).forward)
        for name, value in vars(child).items():
            if "_hooks" in name and hasattr(value, "__len__"):
                found |= {f"{path}.{name}[{i}]": 0 for i in range(len(value))}
            else:
                found[f"{path}.{name}"] = id(value) if callable(value) else 0
    for name, parameter in module.named_parameters():
        found[f"parameter {name}"] = id(parameter)
        found[f"parameter {name}, {parameter.dtype}, requires_grad={parameter.requires_grad}"] = 0
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            found |= {f"parameter {name}.{kind}[{i}]": 0 for i in range(len(getattr(parameter, kind, None) or ()))}
    return found


def left_behind(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """What is new, gone or replaced."""
    replaced = {f"{name} is replaced" for name in before.keys() & after.keys() if before[name] != after[name]}
    gone = {f"{name} is gone" for name in before.keys() - after.keys()}
    return (after.keys() - before.keys()) | gone | replaced


def ours(root: Any, name: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """The objects of this package that hang on ``root``, with their paths."""
    of_package = "lightning_objectives"
    function = getattr(root, "__func__", root)
    homes = (getattr(type(root), "__module__", ""), getattr(function, "__module__", ""))
    if any(str(home).partition(".")[0] == of_package for home in homes):
        yield name, root
        return
    if depth == 0 or isinstance(root, (Tensor, str, int, float, type)):
        return
    if isinstance(root, dict):
        inner = list(root.items())
    elif isinstance(root, (list, tuple, set)):
        inner = list(enumerate(root))
    else:
        inner = [item for item in getattr(root, "__dict__", {}).items() if item[0] not in ("_trainer", "trainer")]
    for key, value in inner:
        # Modules nest deeply, but are worth following to their ends.
        yield from ours(value, f"{name}.{key}", depth if isinstance(value, nn.Module) else depth - 1)


def largest_difference(one: State, other: State) -> float:
    """The largest difference of two states, relative to the largest weight (at least 1)."""
    worst = 0.0
    for name in one:
        a, b = one[name].double(), other[name].double()
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1.0)))
    return worst


def gradient_difference(one: Recording, other: Recording) -> float:
    """The largest difference of the gradients over all steps, relative to the largest gradient of each step."""
    if len(one.gradients) != len(other.gradients):
        return float("inf")
    worst = 0.0
    for these, those in zip(one.gradients, other.gradients):
        if [g is None for g in these] != [g is None for g in those]:
            return float("inf")
        pairs = [(a.double(), b.double()) for a, b in zip(these, those) if a is not None and b is not None]
        scale = max((float(b.abs().max()) for _, b in pairs if b.numel()), default=0.0) or 1.0
        worst = max([worst, *(float((a - b).abs().max()) / scale for a, b in pairs if b.numel())])
    return worst


def close(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers agree; NaN agrees with nothing."""
    return abs(a - b) <= tolerance * max(1.0, abs(b))


torch.set_num_threads(1)
