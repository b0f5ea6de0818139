"""Finds what an unedited validation or test step compares: predictions and targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.batch import part_of, tensors_of, unwrap
from lightning_objectives._step.calls import Call
from lightning_objectives._step.capture import Capture, NetworkCall
from lightning_objectives._step.compared import Compared
from lightning_objectives._step.compiled import lies_in_compiled
from lightning_objectives._step.head import network_of, resolve
from lightning_objectives._step.shown import HeadCall, SeenHead, Shown
from lightning_objectives._step.shown_teacher import ShownTeacher
from lightning_objectives._trainer.patch import Patch


@dataclass(kw_only=True)
class Where:
    """Says where predictions and target of an evaluation step are, if they are not found without help."""

    criterion: str | None = None
    """Path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses."""
    which: int | None = None
    """Number of the criterion's call, from 0, if a step makes several."""
    head: str | None = None
    """Path of the network's head, if a step has no criterion and the head is not found."""
    target: str | int | None = None
    """Path of the target in the batch, if a step has no criterion; by default the last element."""


class EvaluationSteps:
    """Patches a module's validation and test steps, and calls ``on_batch(loader, compared)`` after each of them.

    What a step compares are the arguments of its criterion. If a step has no criterion, they are the head's output and
    the target in the batch. A batch without a criterion is left out if other batches have one, and so is a batch that
    has no target.

    Args:
        module: the LightningModule.
        on_batch: called after each step with the number of the data loader and what the step compared.
        where: what the user says about the step.
        repeat: whether to keep the arguments of the network's forward for :meth:`repeated`.
        on_step: called after each step with what it has computed, also if there is nothing to compare; None for nobody.
        teacher: a network for ``on_step`` to ask for its features; None without one.
    """

    def __init__(
        self,
        module: Any,
        on_batch: Callable[[int, Compared], None],
        where: Where,
        *,
        repeat: bool = False,
        on_step: Callable[[Shown], None] | None = None,
        teacher: ShownTeacher | None = None,
    ) -> None:
        self.module = module
        self.on_batch = on_batch
        self.on_step = on_step
        self.where = where
        self.repeat = repeat
        self.teacher = teacher
        self._capture = Capture(module)
        self._network: nn.Module | None = None
        self._running = self._built = self._proved = self._saw_criterion = False
        self._calls: list[Call] = []
        self._heads: list[HeadCall] = []
        self._head = SeenHead(missing="its network is built later")
        self._forward: NetworkCall | None = None
        self._nothing = ""
        """Why the latest batch without anything to compare had nothing; empty if something was compared."""
        self._undo = [Patch(module, name, self._step).remove for name in ("validation_step", "test_step")]
        self._undo.append(Patch(module, "configure_model", self._configure_model, visible=True).remove)
        self._undo.append(self._capture.remove)

    def restore(self) -> None:
        """Remove the patches; does nothing the second time."""
        while self._undo:
            self._undo.pop()()

    def _configure_model(self, inner: Callable[[], Any]) -> None:
        inner()
        if self._built:
            return
        self._built = True
        module = self.module
        self._capture.criterion(self.where.criterion, mode=False)
        try:
            path, head = resolve(module, self.where.head or getattr(module, "objective_head", None))
        except ValueError:
            if self.where.head or self.repeat or self.teacher is not None:
                raise
            self._head = SeenHead(missing=f"no head was found in {type(module).__name__}")
            return  # The criterion is enough.
        self._network = network_of(module, path)
        self._head = SeenHead(missing=f"the head {path!r} lies in a compiled module, so that its calls are not seen")
        if not lies_in_compiled(module, path):
            self._head = SeenHead(head, path)
            self._capture.head(head)
        if self.repeat or self.teacher is not None:
            self._capture.network(self._network)
        if self.teacher is not None:
            self._capture.network(module)

    # -- one batch -----------------------------------------------------------------------------------------------------

    def _step(self, inner: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch, _ = unwrap(batch)
        if self._running:  # The user's test_step calls the validation_step.
            return inner(batch, *args, **kwargs)
        self._calls, self._heads, self._running = [], [], True
        try:
            with self._capture.listening(self):
                result = inner(batch, *args, **kwargs)
            network_calls = [*self._capture.network_calls]
            self._forward = network_calls[-1] if self.repeat and network_calls else None
        finally:
            self._running = False
            self._capture.forget()
        compared = self._compared(batch)
        loader = args[1] if len(args) > 1 else kwargs.get("dataloader_idx", 0)
        if compared is not None:
            self.on_batch(loader, compared)
        if self.on_step is not None:
            if self._calls and compared is not None:
                self._head.problem = compared.problem or ""
            shown = (self.module, batch, loader, compared, bool(self._calls), self._heads, self._head)
            self.on_step(Shown(*shown, network_calls, self.teacher))
        self._heads = []
        return result

    def on_call(self, call: Call) -> Tensor:
        """Note a call of a criterion."""
        self._calls.append(call)
        return call.value()

    def on_head(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the head's output."""
        output = inner(*args, **kwargs)
        if isinstance(output, Tensor):
            features = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            self._heads.append(HeadCall(None if features is None else features.detach(), output.detach()))
        return output

    def check_something(self) -> None:
        """Refuse an evaluation in which no batch had anything to compare.

        Raises:
            ValueError: with the reason.
        """
        reason, self._nothing = self._nothing, ""
        if reason:
            raise ValueError(reason)

    def _compared(self, batch: Any) -> Compared | None:
        call = self._call()
        compared: Compared | None = None
        if call is not None:
            self._saw_criterion = True
            compared = Compared.of_call(call)
        elif not self._saw_criterion and self._heads:
            target = self._target(batch)
            compared = None if target is None else Compared.of_head(self._heads[-1].output, target)
        elif not self._heads:
            self._nothing = self._nothing or (
                f"In {type(self.module).__name__}'s evaluation step no criterion and no head was seen, so there are no "
                "logits. Name the head with head='path.to.it', or the criterion with criterion='path.to.it'."
            )
        return compared

    def _call(self) -> Call | None:
        """The criterion's call of this batch that is to be read; None if there is none."""
        return call_to_read(self._calls, self.where.which, f"{type(self.module).__name__}'s evaluation step")

    def _target(self, batch: Any) -> Tensor | None:
        answer = getattr(self.module, "objective_target", None)
        value = answer(batch) if answer is not None else None
        path = self.where.target
        if value is None and path is not None:
            value = part_of(batch, path)
        elif value is None and isinstance(batch, (tuple, list)) and len(batch) > 1:
            value = batch[-1]
        if isinstance(value, Tensor):
            return value
        reason = (
            f"There is no tensor of targets at target={path!r} in a batch that is a {type(batch).__name__}. Say "
            "target='path.to.it', a path of keys, positions and attributes, or answer `objective_target(batch)` with "
            "the mixin."
        )
        if path is not None or (isinstance(batch, Mapping) and len(list(tensors_of(batch))) > 1):
            raise ValueError(reason)
        self._nothing = self._nothing or reason
        return None

    # -- other weights -------------------------------------------------------------------------------------------------

    def repeated(self, weights: dict[str, Tensor], compared: Compared) -> Compared:
        """What the latest step would have compared with other weights.

        Raises:
            ValueError: the predictions are not what the network returns.
        """
        if self._network is None or self._forward is None:
            raise ValueError(
                "weights= repeats the network's own forward, but the evaluation step did not call it. Remove weights=, "
                "or call the network in the step."
            )
        call = self._forward
        if not self._proved:
            shaped = in_shape_of(compared.input, call.output)
            if shaped is None or not agree(shaped, compared.input):
                raise ValueError(
                    f"weights=: the logits are not what {type(self._network).__name__} returns, so its forward "
                    "cannot be repeated with other weights. Name the network with the mixin's `objective_network`."
                )
            self._proved = True
        prefix = next(path for path, child in self.module.named_modules() if child is self._network)
        prefix = f"{prefix}." if prefix else ""
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        with Capture.closed():
            output = torch.func.functional_call(self._network, own, call.args, call.kwargs)
        repeated = in_shape_of(compared.input, output)
        assert repeated is not None  # The first batch proved it.
        return compared.with_input(repeated)


def call_to_read(calls: Sequence[Call], which: int | None, step: str) -> Call | None:
    """The criterion's call of a batch that is to be read; None if there is none.

    Args:
        calls: the calls of the batch.
        which: the number of the call that the user means.
        step: what calls them, for messages.

    Raises:
        ValueError: several criteria compare different tensors, and none is named; or there is none of this number.
    """
    first = calls[0] if calls else None
    if first is not None and which is None and any(not _compare_alike(first, call) for call in calls):
        names = ", ".join(f"{i}: {call.name} of {tuple(call.input.shape)}" for i, call in enumerate(calls))
        raise ValueError(f"{step} calls {len(calls)} criteria ({names}); say which=0, 1, ... is the one to read.")
    if calls and (which or 0) >= len(calls):
        raise ValueError(f"which={which}, but {step} calls {len(calls)} criteria; choose a smaller number.")
    return calls[which or 0] if calls else None


def _compare_alike(first: Call, other: Call) -> bool:
    """Whether two criteria compare the same two tensors, as a loss and a metric of the same predictions do."""
    return first is other or (first.input is other.input and first.target is other.target)


def agree(output: Tensor, input: Tensor) -> bool:
    """Whether the network's output is what the criterion compared: equal, or equal logits up to a constant a row."""
    if torch.allclose(output, input, atol=1e-5):
        return True
    return input.dim() > 1 and input.shape[1] > 1 and torch.allclose(output.softmax(1), input.softmax(1), atol=1e-5)


def in_shape_of(logits: Tensor, output: Any) -> Tensor | None:
    """A network's output in the shape of the logits: itself, or one row per position as in language models.

    >>> in_shape_of(torch.zeros(6, 4), torch.ones(2, 3, 4)).shape, in_shape_of(torch.zeros(6, 4), torch.ones(6, 5))
    (torch.Size([6, 4]), None)
    """
    if not isinstance(output, Tensor) or output.shape == logits.shape:
        return output if isinstance(output, Tensor) else None
    flat = output.flatten(0, -2) if output.dim() > 2 else output
    if flat.shape == logits.shape:
        return flat
    return output.reshape(logits.shape) if output.squeeze().shape == logits.squeeze().shape else None
