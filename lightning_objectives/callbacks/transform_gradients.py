"""Changes the gradients between the backward pass and the optimizer step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_objectives._files.names import plainly_named
from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives.kinds import GradientTransform


@dataclass(eq=False)
class TransformGradients(StatefulCallback):
    """Changes the gradients before each optimizer step, by one method or by several in their order.

    The methods see the gradient of the whole step: accumulated over its batches, equal on all ranks, and unscaled.
    Lightning clips afterwards (``gradient_clip_val``), and the optimizer steps with the result. If a gradient scaler
    will skip the step, nothing changes. Several of these callbacks act in the order of the Trainer's list.

    Args:
        transform: the method, or several.

    Raises:
        ValueError: at the start of the training, if there are several optimizers, if the optimizer evaluates its
            closure many times per step or unscales the gradients itself, if it has weight decay and a method keeps
            weights as they are, if the strategy shards the gradients, or if the checkpoint is of a module with other
            parameters.

    Checkpoints: the states of the methods lie in this callback's state, and resuming goes on from them to the bit.

    Cost: one copy of the gradients, and the cost of the methods. With a gradient scaler on a GPU, each step waits once
    for the device, because the scaler skips a step that overflows.

    Example:
        >>> from lightning_objectives.gradients import ComponentwiseGradClip, OrthogonalGradient
        >>> TransformGradients([OrthogonalGradient(), ComponentwiseGradClip(max_norm=0.5)]).transforms
        (OrthogonalGradient(min_dims=2), ComponentwiseGradClip(max_norm=0.5))
    """

    kind = GradientTransform
    refuses: ClassVar = {
        "fsdp2": "each rank holds only a shard of each gradient, so norms and products would be wrong; use DDPStrategy",
        "several_optimizers": "a step of one optimizer would also change the gradients of the others' parameters",
        "lbfgs": "it evaluates the loss many times per step, and needs the unchanged gradient each time",
    }

    waits: ClassVar = {"a_scaler_on_a_gpu": {"on_before_optimizer_step": "the scaler skips a step that overflows"}}

    transform: GradientTransform | Sequence[GradientTransform]

    def __post_init__(self) -> None:
        self.transforms = (self.transform,) if isinstance(self.transform, GradientTransform) else tuple(self.transform)
        if not self.transforms or not all(isinstance(t, GradientTransform) for t in self.transforms):
            raise ValueError(f"transform={self.transform!r} must be a gradient transform, or a sequence of them.")
        self._names: list[str] = []
        self._states: list[dict[str, Any]] = []

    def methods(self) -> list[Any]:
        """The gradient transforms."""
        return list(self.transforms)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit."""
        if stage != "fit":
            return
        self._names, self._states, self.pending = [], [], None
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the optimizer; begin, or go on from the state of the checkpoint."""
        self._check(trainer)
        params = dict(plainly_named(pl_module.named_parameters()))  # so that a state resumes compiled or not
        self._names = list(params)
        self._states = [transform.init(list(params.values())) for transform in self.transforms]
        state = self.take_pending()
        if state is None:
            return
        with taking(self.state_key, trainer):
            states, names = [dict(state) for state in state["states"]], list(state["names"])
        if any(states) and names != self._names:
            other = sorted(set(names) ^ set(self._names))[:5]
            raise ValueError(
                f"The checkpoint holds a state of TransformGradients({self.transform!r}) for {len(names)} parameters, "
                f"but the module has {len(self._names)}; they differ in {other or 'their order'}. Resume without the "
                "callback, or with the module as it was."
            )
        with taking(self.state_key, trainer):
            if len(states) != len(self._states) or not all(map(_alike, states, self._states)):
                raise ValueError(f"its states do not have the form of new ones, {[list(s) for s in self._states]}")
        self._states = apply_to_collection(states, Tensor, lambda tensor: tensor.to(pl_module.device))

    def _check(self, trainer: Any) -> None:
        if len(trainer.optimizers) > 1:
            raise ValueError(
                f"TransformGradients works with one optimizer, not with {len(trainer.optimizers)}: "
                f"{self.refuses['several_optimizers']}."
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        still = next((transform for transform in self.transforms if transform.keeps_still), None)
        for optimizer in (getattr(o, "optimizer", o) for o in trainer.optimizers):
            name = type(optimizer).__name__
            decays = [group["weight_decay"] for group in optimizer.param_groups if group.get("weight_decay")]
            if still is not None and decays:
                raise ValueError(
                    f"{still} keeps weights as they are by a gradient of 0, but {name} has weight_decay={decays[0]}, "
                    "which would shrink them all the same. Use weight_decay=0."
                )
            if isinstance(optimizer, torch.optim.LBFGS):
                raise ValueError(
                    f"TransformGradients cannot work with {name}: {self.refuses['lbfgs']}. Use an optimizer that "
                    "steps once."
                )
            if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                raise ValueError(
                    f"TransformGradients would see scaled gradients, because this {name} unscales them itself "
                    "(fused=True). Use fused=False, or bf16-mixed, which scales nothing."
                )

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Replace the gradients."""
        params = list(pl_module.parameters())
        gradients: list[Tensor | None] = [p.grad for p in params]
        present = [g for g in gradients if g is not None]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not present or (scaled and not torch.stack([g.isfinite().all() for g in present]).all()):
            return  # The optimizer will not step.
        step = trainer.global_step
        for transform, state in zip(self.transforms, self._states):
            if transform.active(step=step):
                gradients = transform.update(gradients, params, state)
        for p, new in zip(params, gradients):
            if p.grad is not None and new is not None and new is not p.grad:
                p.grad.copy_(new)  # in place, because DDP may keep the gradients in its buckets

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """One entry in the checkpoint for each choice of methods."""
        return f"{type(self).__name__}({self.transform!r})"

    def state_dict(self) -> dict[str, Any]:
        """The states of the methods, and the names of the parameters they belong to."""
        return {"names": self._names, "states": self._states} if self._states else dict(self.pending or {})


def _alike(value: Any, new: Any) -> bool:
    """Whether a state has the form of a new one. An entry that is empty, None or missing in the new one may be any."""
    if isinstance(new, Mapping):
        return isinstance(value, Mapping) and all(k in value and _alike(value[k], new[k]) for k in new)
    if isinstance(new, (list, tuple)):
        same = isinstance(value, (list, tuple)) and (not new or len(value) == len(new))
        return same and all(map(_alike, value, new))
    if isinstance(new, Tensor):
        return isinstance(value, Tensor) and value.shape == new.shape
    return new is None or isinstance(value, (type(new), int) if isinstance(new, (int, float)) else type(new))
