"""Takes the gradient of a training step at moved weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_objectives._files.names import plainly_named
from lightning_objectives._step.batch import tensors_of
from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.compiled import is_compiled
from lightning_objectives._step.gradients import loss_scale
from lightning_objectives._step.graph import holds
from lightning_objectives._step.passes import (
    MovedWeights,
    Muted,
    Surroundings,
    loss_in,
    versions,
    with_gradient_of,
    with_loss,
)
from lightning_objectives._step.plan import Plan
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.random import batch_seed
from lightning_objectives._trainer.ranks import averaged_over_ranks
from lightning_objectives.kinds import Perturbation

_CHANGED = (
    "{user}.training_step changes {what} in place, so a second pass over the batch would not be the same step again. "
    "PerturbWeights runs the step twice. {way_out}"
)


@dataclass(eq=False)
class PerturbWeights(StepCallback):
    """Moves the weights, takes the gradient of the step there, and puts the weights back before the optimizer steps.

    A method that uses gradients runs your ``training_step`` twice on each batch: first to know where to move, then for
    the gradient. Both passes see the same batch, the same random draws (dropout), the same buffers, and everything that
    the other callbacks do. What the first pass logs, its loss, its metrics and BatchNorm's statistics are those that
    stay; the second pass leaves its gradient alone. Attributes of Python that your step counts up itself count twice.

    The weights come back to the bit when the backward pass is over. Clipping, averages, validation and checkpoints see
    only the weights that the optimizer makes. With gradient accumulation each batch moves the weights by its own
    gradient.

    Args:
        perturbation: the method, ``(gradients, params) -> offsets``.
        across_ranks: move the weights of all processes alike, by the mean of their gradients. By default each process
            moves its weights by the gradient of its own rows, as the papers' code does.
        every_n_steps: move the weights in one optimizer step out of so many, the last one; the others are plain.

    Raises:
        ValueError: ``every_n_steps`` below 1; in the training, a step that changes its batch or its parameters in
            place, or has a checkpoint with ``use_reentrant=True`` in it.

    Cost: that of the step itself once more, one copy of the weights in the second pass, and copies of the buffers.

    Example:
        >>> from lightning_objectives.perturbations import SAM
        >>> PerturbWeights(SAM(rho=0.1), every_n_steps=5).perturbation
        SAM(rho=0.1)
    """

    kind = Perturbation
    place = "perturbation"
    refuses: ClassVar = {
        "fsdp2": "each rank holds only a shard of each gradient and weight, so its norms would be wrong, and gathered "
        "weights would not follow; use DDPStrategy"
    }

    perturbation: Perturbation
    across_ranks: bool = False
    every_n_steps: int = 1

    draws_by_rank = False  # They move the same weights alike.

    def __post_init__(self) -> None:
        if self.every_n_steps < 1:
            raise ValueError(f"every_n_steps={self.every_n_steps} must be >= 1.")
        if not isinstance(self.perturbation, Perturbation):
            raise ValueError(f"perturbation={self.perturbation!r} must be a perturbation, such as SAM().")
        self._moved: MovedWeights | None = None
        self._patch: Patch | None = None
        self._is_seen = False
        """Whether a fit has shown that its weights can be seen."""
        self._is_compiled: bool | None = None
        """Whether compiled code knows where the weights lie; None before the first step."""
        self._after: Surroundings | None = None
        """What the first pass has left, for the buffers to come back to."""

    @property
    def passes(self) -> int:
        """Two, if the method uses gradients."""
        return 2 if self.perturbation.uses_gradients else 1

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._is_seen, self._is_compiled = False, None
            # Not by a hook of this callback: a search for the learning rate trains without the callbacks.
            self._patch = Patch(pl_module, "backward", self._backward)

    def methods(self) -> list[Any]:
        """The perturbation."""
        return [self.perturbation]

    @property
    def signals(self) -> tuple[str, ...]:
        """No signals: the method gets gradients and parameters."""
        return ()

    def active(self, step: int) -> bool:
        """Whether the weights move at this optimizer step."""
        return (step + 1) % self.every_n_steps == 0 and super().active(step)

    def perturbed(self, run: Callable[[], Any], plan: Plan) -> Any:
        """Run the step where the weights are moved to, and return its output with the gradient of there."""
        self._restore()
        everything = dict(plainly_named(plan.module.named_parameters()))
        params = {name: param for name, param in everything.items() if param.requires_grad}
        if not self.perturbation.uses_gradients:
            return self._at_moved_weights(run, params, {}, plan)
        before = self._surroundings(plan)
        output = self._first_pass(run, plan, everything.values())
        loss = loss_in(output)
        if loss is None or not loss.requires_grad:
            return output
        gradients = self._gradients(loss, params, plan)
        if not gradients:
            return output
        after = self._after = self._surroundings(plan)
        before.restore()
        with Muted(plan.module):
            second = loss_in(self._at_moved_weights(run, params, gradients, plan))
        after.restore(buffers=False)
        if second is None:
            self._restore()
            raise ValueError(
                f"{type(plan.module).__name__}.training_step returned a loss in the first pass over a batch, but none "
                "in the second, which sees the same batch and the same random draws. Let it decide by the batch alone."
            )
        return with_loss(output, with_gradient_of(loss, second))

    def _first_pass(self, run: Callable[[], Any], plan: Plan, params: Iterable[Tensor]) -> Any:
        tensors = {
            "its batch": list(tensors_of(plan.batch)),
            "parameters": [param for param in params if not is_lazy(param)],
        }
        ways_out = {
            "its batch": "Let it change a copy, as in x = x + noise.",
            "parameters": "Change them in on_train_batch_end, as for the average of a momentum encoder.",
        }
        before = {what: versions(of) for what, of in tensors.items()}
        output = run()
        for what, of in tensors.items():
            if versions(of) != before[what]:
                user = type(plan.module).__name__
                raise ValueError(_CHANGED.format(user=user, what=what, way_out=ways_out[what]))
        return output

    def _gradients(self, loss: Tensor, params: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
        """The gradient of a loss for each parameter that it depends on, unscaled."""
        scale = loss_scale(plan.trainer, loss)
        is_seen, self._is_seen = self._is_seen, True
        if not is_seen and holds(loss, "CheckpointFunction"):
            raise ValueError(
                "PerturbWeights cannot see the weights behind checkpoint(..., use_reentrant=True), so it would move "
                "the others alone. Use checkpoint(..., use_reentrant=False)."
            )
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss * scale, list(params.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(params, found) if gradient is not None}
        if isinstance(scale, Tensor):
            gradients = dict(zip(gradients, torch._foreach_div(list(gradients.values()), scale)))
        return averaged_over_ranks(gradients, params) if self.across_ranks else gradients

    def _at_moved_weights(
        self, run: Callable[[], Any], params: dict[str, Tensor], gradients: dict[str, Tensor], plan: Plan
    ) -> Any:
        with torch.no_grad():
            offsets = self.perturbation.offsets(gradients, params, generator=self._generator(plan))
        if self._is_compiled is None:
            self._is_compiled = any(map(is_compiled, plan.module.modules()))
        self._moved = MovedWeights(params, offsets, in_place=self._is_compiled)
        try:
            return run()
        except BaseException:
            self._restore()
            raise

    def _generator(self, plan: Plan) -> torch.Generator:
        # All processes draw the same, so that they move the same weights alike.
        seed = batch_seed(self.seed, plan.trainer, by_rank=False)
        return torch.Generator(plan.module.device).manual_seed(seed)

    def _surroundings(self, plan: Plan) -> Surroundings:
        placed = [member.method for member in plan.members if isinstance(member.method, nn.Module)]
        return Surroundings([plan.module, *placed], plan.module.device)

    def _restore(self) -> None:
        if self._moved is not None:
            self._moved.restore()
            self._moved = None
        if self._after is not None:
            self._after.restore_buffers()
            self._after = None

    def _backward(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Put the weights back after the backward pass."""
        try:
            inner(*args, **kwargs)
        finally:
            self._restore()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the weights as they were, if a signal asks for a file in the middle of a step."""
        if self._moved is None:
            return
        copies = {param.data_ptr(): copy for param, copy in zip(self._moved.params, self._moved.copies)}
        if self._after is not None:
            copies |= self._after.values_by_place()
        weights = checkpoint["state_dict"]
        for name, tensor in weights.items():
            if isinstance(tensor, Tensor) and tensor.data_ptr() in copies:
                weights[name] = copies[tensor.data_ptr()]

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Put the weights back, also after an error."""
        self._restore()
        if self._patch is not None:
            self._patch.remove()
        super().release(trainer, pl_module)
