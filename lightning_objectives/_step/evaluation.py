"""Finds the logits and the target that an unedited validation or test step compares."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives._step.batch import unwrap
from lightning_objectives._step.compiled import lies_in_compiled
from lightning_objectives._step.criterion import Call, CriterionMode, Named, locate
from lightning_objectives._step.head import network_of, resolve
from lightning_objectives._trainer.patch import Patch

NO_CHOICE = "which is no choice of one class"
"""Why a step cannot be measured as a classification."""
_NOT_CLASSES = (F.mse_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits)


@dataclass(kw_only=True)
class Where:
    """Says where the logits and the target of an evaluation step are, if they are not found without help."""

    criterion: str | None = None
    """Path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses."""
    which: int | None = None
    """Number of the criterion's call, from 0, if a step makes several."""
    head: str | None = None
    """Path of the network's head, if a step has no criterion and the head is not found."""
    target: str | int | None = None
    """Key or position of the target in the batch, if a step has no criterion; by default the last element."""


class _Hook:
    """A forward hook that does nothing in a copy or a pickle of the module."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nothing,)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


class EvaluationSteps:
    """Patches a module's validation and test steps, and calls ``on_batch(loader, logits, target)`` after each of them.

    The logits and the target are the arguments of the step's criterion. If a step has no criterion, they are the head's
    output and the target in the batch.

    Args:
        module: the LightningModule.
        on_batch: called after each step with the number of the data loader, the logits and the target.
        where: what the user says about the step.
        otherwise: the way out for the error message if the criterion does not compare with one class per row; None if
            that is no error.
        repeat: whether to keep the arguments of the network's forward for :meth:`repeated`.
    """

    _repeating: ClassVar[bool] = False
    """Whether some network runs a second time; no hook may take that for the step's own run."""

    def __init__(
        self,
        module: Any,
        on_batch: Callable[[int, Tensor, Tensor], None],
        where: Where,
        *,
        otherwise: str | None = None,
        repeat: bool = False,
    ) -> None:
        self.module = module
        self.on_batch = on_batch
        self.where = where
        self.otherwise = otherwise
        self.ignore_index: int | None = None
        """The target value that marks what does not count, in the latest batch; None if there is none."""
        self.repeat = repeat
        self._running = self._checked = False
        self._call: Call | None = None
        self._calls = 0
        self._output: Tensor | None = None
        self._forward: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None
        self._network: nn.Module | None = None
        self._undo = [Patch(module, name, self._step).remove for name in ("validation_step", "test_step")]
        self._undo.append(Patch(module, "configure_model", self._configure_model, visible=True).remove)
        self._mode = None if where.criterion else CriterionMode(torch.compiler.disable(self._caught))  # type: ignore[no-untyped-call]  # torch

    def restore(self) -> None:
        """Remove the patches; does nothing the second time."""
        while self._undo:
            self._undo.pop()()

    def _configure_model(self, inner: Callable[[], Any]) -> None:
        inner()
        if self._network is not None:
            return
        module = self.module
        if self.where.criterion is not None:
            owner, name = locate(module, self.where.criterion)
            self._named = Named(self.where.criterion)
            self._undo.append(Patch(owner, name, self._caught_named).remove)
        try:
            path, head = resolve(module, self.where.head or getattr(module, "objective_head", None))
        except ValueError:
            if self.where.head or self.repeat:
                raise
            return  # The criterion is enough.
        self._network = network_of(module, path)
        if not lies_in_compiled(module, path):
            self._undo.append(head.register_forward_hook(_Hook(self._head_hook)).remove)
        if self.repeat:
            hook = _Hook(self._network_hook)
            self._undo.append(self._network.register_forward_hook(hook, with_kwargs=True).remove)

    # -- one batch -----------------------------------------------------------------------------------------------------

    def _step(self, inner: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch, _ = unwrap(batch)
        self._call, self._calls, self._output, self._forward = None, 0, None, None
        self._running = True
        try:
            with self._mode or nullcontext():
                result = inner(batch, *args, **kwargs)
        finally:
            self._running = False
        loader = args[1] if len(args) > 1 else kwargs.get("dataloader_idx", 0)
        self.on_batch(loader, *self._compared(batch))
        return result

    @property
    def _live(self) -> bool:
        return self._running and not EvaluationSteps._repeating

    def _caught(self, call: Call) -> Tensor:
        if self._live:
            if self._calls == (self.where.which or 0):
                self._call = call
            self._calls += 1
        return call.value()

    def _caught_named(self, inner: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return self._caught(self._named.parse(inner, args, kwargs)) if self._live else inner(*args, **kwargs)

    def _head_hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._live and isinstance(output, Tensor):
            self._output = output

    def _network_hook(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._live:
            self._forward = args, kwargs, output

    def _compared(self, batch: Any) -> tuple[Tensor, Tensor]:
        user, which = type(self.module).__name__, self.where.which
        if self._calls > 1 and which is None:
            raise ValueError(
                f"{user}'s evaluation step calls {self._calls} criteria; say which=0, 1, ... is the one to read."
            )
        if self._call is not None:
            if self.otherwise is not None and self._call.function in _NOT_CLASSES and self._call.input.dim() > 1:
                raise ValueError(
                    f"{user} is evaluated by {self._call.function.__name__} on {tuple(self._call.input.shape)}, "
                    f"{NO_CHOICE}; {self.otherwise}."
                )
            self.ignore_index = self._call.options.get("ignore_index")
            return self._call.input.detach(), self._call.target
        if self._calls:
            raise ValueError(
                f"which={which}, but {user}'s evaluation step calls {self._calls} criteria; choose a smaller number."
            )
        if self._output is None:
            raise ValueError(
                f"In {user}'s evaluation step no criterion and no head was seen, so there are no logits. Name the head "
                "with head='path.to.it'."
            )
        return self._output.detach(), self._target(batch)

    def _target(self, batch: Any) -> Tensor:
        answer = getattr(self.module, "objective_target", None)
        value = answer(batch) if answer is not None else None
        target = self.where.target
        if value is None:
            items = list(batch.values()) if isinstance(batch, Mapping) else batch
            key = target if target is not None else -1
            value = batch.get(key) if isinstance(batch, Mapping) and target is not None else None
            if value is None and isinstance(items, (tuple, list)) and isinstance(key, int) and -len(items) <= key:
                value = items[key] if key < len(items) else None
        if not isinstance(value, Tensor):
            raise ValueError(
                f"There is no tensor of targets at target={target!r} in a batch that is a {type(batch).__name__}. Say "
                "target='key' or target=position, or answer `objective_target(batch)` with the mixin."
            )
        return value

    # -- other weights -------------------------------------------------------------------------------------------------

    def repeated(self, weights: dict[str, Tensor], logits: Tensor) -> Tensor:
        """Compute the logits of the latest step with other weights.

        Raises:
            ValueError: the logits are not what the network returns.
        """
        if self._network is None or self._forward is None:
            raise ValueError(
                "weights= repeats the network's own forward, but the evaluation step did not call it. Remove weights=, "
                "or call the network in the step."
            )
        args, kwargs, output = self._forward
        if not self._checked:
            shaped = _in_shape_of(logits, output)
            if shaped is None or not torch.allclose(shaped.softmax(1), logits.softmax(1), atol=1e-5):
                raise ValueError(
                    f"weights=: the logits are not what {type(self._network).__name__} returns, so its forward "
                    "cannot be repeated with other weights. Name the network with the mixin's `objective_network`."
                )
            self._checked = True
        prefix = next(path for path, child in self.module.named_modules() if child is self._network)
        prefix = f"{prefix}." if prefix else ""
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        EvaluationSteps._repeating = True
        try:
            repeated = _in_shape_of(logits, torch.func.functional_call(self._network, own, args, kwargs))
        finally:
            EvaluationSteps._repeating = False
        assert repeated is not None  # The first batch proved it.
        return repeated


def _in_shape_of(logits: Tensor, output: Any) -> Tensor | None:
    """A network's output in the shape of the logits: itself, or one row per position as in language models.

    >>> _in_shape_of(torch.zeros(6, 4), torch.ones(2, 3, 4)).shape, _in_shape_of(torch.zeros(6, 4), torch.ones(6, 5))
    (torch.Size([6, 4]), None)
    """
    if not isinstance(output, Tensor) or output.shape == logits.shape:
        return output if isinstance(output, Tensor) else None
    flat = output.flatten(0, -2) if output.dim() > 2 else output
    return flat if flat.shape == logits.shape else None
