"""The pipeline patches the training step of an existing module, and gives it back at the end of the fit.

Each callback of the step registers with the pipeline of its module. The order of the callbacks does not matter. In each
step: batch transform -> the user's own step, with the head wrapped and the criterion caught -> per-sample losses (the
model's own, or the replacement) -> weights -> the reduction and denominator that the model asked for -> added terms ->
their combination.
"""

import re
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_objectives._step.batch import batch_size_of, part_of, unwrap
from lightning_objectives._step.compiled import is_compiled, lies_in_compiled
from lightning_objectives._step.criterion import Call, CriterionMode, Named, locate
from lightning_objectives._step.extras import Extras
from lightning_objectives._step.head import network_of, resolve
from lightning_objectives._step.member import Member
from lightning_objectives._step.proof import prove
from lightning_objectives._step.rows import fold
from lightning_objectives._step.signals import Signals
from lightning_objectives._step.stacks import Stacks
from lightning_objectives._trainer.lightning import is_param_in_hook_signature
from lightning_objectives._trainer.names import numbered
from lightning_objectives._trainer.patch import Patch
from lightning_objectives.signals import signals_from

PLACES = ("transform", "head", "loss", "weighting", "term", "combination")
"""The places of a step, in order. Each place takes one callback; only terms can be several."""
BY_HAND = (
    "it sets `automatic_optimization = False`: Lightning then ignores the loss that `training_step` returns, so "
    "changing it has no effect"
)
DRAWN = "a training_step(dataloader_iter) draws its batches itself, so that there is none to see before it"
"""Why no callback of the step can work with such a module."""
COMPILED = "its head lies in a compiled module, in which it cannot be reached"
_CHANGES = ("transform", "head", "loss", "weighting")
"""The places that change the criterion's value."""
FROM_HEAD = signals_from("head")
_FROM_CALLS = FROM_HEAD | signals_from("criterion")
"""The signals that come from the calls of the head and the criterion, which the step must catch."""


class Pipeline:
    """The training step of one module during one fit."""

    _all: ClassVar[MutableMapping[Any, "Pipeline"]] = WeakKeyDictionary()

    def __init__(self, trainer: Any, module: Any) -> None:
        self.trainer = trainer
        self.module = module
        self.members: list[Member] = []
        self.extras = Extras(module)
        self.stacks = Stacks()
        self.providers: dict[str, Callable[[Signals], Any]] = {
            "step": lambda signals: torch.tensor(self.trainer.global_step),
            "epoch": lambda signals: torch.tensor(self.trainer.current_epoch),
            "progress": self._progress,
            "losses": self._sample_losses,
        }
        """The functions that compute the signals that neither the batch nor the criterion gives, by name."""
        self.steps = 0
        """Training steps that went through the pipeline."""
        self.caught_calls = 0
        """Calls of the criterion that the pipeline changed or read, over all steps."""
        self.signals: Signals
        self.loss: Tensor
        """The loss that the user's step returned; a term that combines itself with it may replace it."""
        self.logged: dict[str, Tensor] = {}
        """The values that the step logs under ``train/``."""
        self.logs = False
        """Whether this step is logged: `log` is slow, and Lightning's loggers keep one step in `log_every_n_steps`."""
        self.batch_size: int | None = None
        self._built = self._verified = self._live = False
        self._head: nn.Module | None = None
        self._head_path = ""
        self._output: Tensor | None = None
        self._calls: list[Call] = []
        self._value: Tensor | None = None
        self._instead: Tensor | None = None
        """The value that replaces the criterion's in the loss of a compiled step."""
        self._losses: Callable[[], Tensor] | None = None
        self._running: dict[str, list[Any]] = {}
        self._named: Named | None = None
        self._mode: CriterionMode | None = None
        self._compiled = self._changed = False
        """Whether a network is compiled by itself; whether a criterion was changed in a step after the first."""
        self._undo: list[Callable[[], None]] = [
            Patch(module, "configure_model", self._configure_model, visible=True).remove,
            Patch(module, "training_step", self._training_step).remove,
        ]

    @classmethod
    def of(cls, trainer: Any, module: Any) -> "Pipeline":
        """The pipeline of a module in this fit; the first call makes it."""
        if module not in cls._all:
            cls._all[module] = cls(trainer, module)
        return cls._all[module]

    @classmethod
    def trainer_of(cls, member: Member) -> Any:
        """The trainer of the pipeline that a callback is registered with; None if there is none."""
        return next((pipeline.trainer for pipeline in cls._all.values() if member in pipeline.members), None)

    @classmethod
    def detach_from(cls, module: Any) -> None:
        """Remove all patches, hooks and extra modules; does nothing if there is no pipeline."""
        pipeline = cls._all.pop(module, None)
        if pipeline is not None:
            for undo in reversed(pipeline._undo):
                undo()

    # -- before the training -------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """Register a callback.

        Raises:
            ValueError: the module optimizes by hand or draws its batches itself, or another callback has the place.
        """
        name, user = type(member).__name__, type(self.module).__name__
        if not self.module.automatic_optimization:
            raise ValueError(
                f"{name} cannot work with {user} because {BY_HAND}. Call the method inside your own step instead: "
                f"{member.method}."
            )
        if is_param_in_hook_signature(self.module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(f"{name} needs the batch of a step, but {user}'s has none: {DRAWN}. Take (batch) instead.")
        rival = next((m for m in self.members if m.place == member.place != "term"), None)
        if rival is not None:
            raise ValueError(
                f"{type(rival).__name__}({rival.method}) and {name}({member.method}) both take the place "
                f"{member.place!r} of the training step, where only one can act. Keep one of them."
            )
        self.members.append(member)
        self.members.sort(key=_order)

    def option(self, name: str) -> Any:
        """The value of an option that the callbacks of a step share.

        Raises:
            ValueError: two callbacks have different values.
        """
        owners = {getattr(m, name): type(m).__name__ for m in self.members if getattr(m, name) is not None}
        if len(owners) > 1:
            parts = ", ".join(f"{owner}({name}={value!r})" for value, owner in owners.items())
            raise ValueError(f"{parts}: there is one training step, so they must agree on {name!r}.")
        return next(iter(owners), None)

    def _configure_model(self, inner: Callable[[], Any]) -> None:
        inner()
        if self._built:
            return
        self._built = True
        self.option("which"), self.option("input")
        signals = {signal for member in self.members for signal in member.signals}
        criterion = self.option("criterion")
        if criterion is not None:
            owner, name = locate(self.module, criterion)
            self._named = Named(criterion)
            self._undo.append(Patch(owner, name, self._named_criterion).remove)
        wrap = any(member.place == "head" for member in self.members)
        if wrap or signals & FROM_HEAD:
            self._find_head(wrap)
        if signals & _FROM_CALLS or any(m.place not in ("term", "combination") for m in self.members):
            # A change differs from step to step, so a compiled step must leave its graph here, once.
            on_call = None if self._named else torch.compiler.disable(self._caught)  # type: ignore[no-untyped-call]  # torch
            self._mode = CriterionMode(on_call, self.stacks)
        for member in self.members:
            member.build(self, self._head)
        self.extras.build(self._methods(), self._head)
        self._undo.append(self.extras.detach)
        rank_zero_info(f"Training step of {type(self.module).__name__}: {self.plan()}")

    def _methods(self) -> dict[str, nn.Module]:
        """The methods that are modules, by names that other callbacks do not change: checkpoints keep these names."""
        named: dict[str, nn.Module] = {}
        for member in self.members:
            if isinstance(member.method, nn.Module):
                name = f"{member.place}_{type(member.method).__name__}"
                again = sum(key.rpartition("_")[0] == name for key in named)
                named[f"{name}_{again}"] = member.method
        return named

    def _find_head(self, wrap: bool) -> None:
        named = self.option("head") or getattr(self.module, "objective_head", None)
        self._head_path, self._head = resolve(self.module, named)
        if lies_in_compiled(self.module, self._head_path):
            raise ValueError(
                f"{self.plan()} needs the head of {type(self.module).__name__}, {self._head_path!r}, but {COMPILED}. "
                "Compile the part of the network before the head instead."
            )
        norms = [n or "itself" for n, m in self._head.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if wrap and norms:
            raise ValueError(
                f"The head {self._head_path!r} holds a BatchNorm ({norms[0]}), whose statistics would mix the stacks. "
                "Name the part of the head that comes after it with head=."
            )
        self.stacks.head = self._head_path
        self.providers["network"] = lambda signals: network_of(self.module, self._head_path)
        # The patch stores new tensors in each step, so torch.compile would compile it again in each.
        forward = torch.compiler.disable(self._head_forward)  # type: ignore[no-untyped-call]  # torch
        self._undo.append(Patch(self._head, "forward", forward).remove)

    def plan(self) -> str:
        """What happens in a step, in words."""
        parts = [f"{type(m).__name__}({m.method})" for m in self.members]
        return " -> ".join(parts) + (f"; head: {self._head_path}" if self._head is not None else "")

    def log_term(self, member: Member, value: Tensor) -> None:
        """Log the value of a term under its method's name, with a number from the second of this name on."""
        if self.logs:
            names: list[str] = []
            terms = [m for m in self.members if m.place == "term"]
            for term in terms:
                names.append(numbered(_called(term), names))
            self.logged[names[terms.index(member)]] = value.detach()

    # -- during a step -------------------------------------------------------------------------------------------------

    def _training_step(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.trainer.training:  # the user's validation_step calls it
            return inner(*args, **kwargs)
        where = self.option("input")
        batch, index = unwrap(args[0] if args else kwargs.get("batch"), where)
        step = self.trainer.global_step
        self._running = {place: [m for m in self.members if m.place == place and m.active(step)] for place in PLACES}
        self.signals = Signals(self.module, batch, where, index, providers=self.providers)
        self.batch_size = batch_size_of(part_of(batch, where))
        every = 0 if self.trainer.barebones else self.trainer.log_every_n_steps
        self.logs = every > 0 and step % every in (0, every - 1)
        self.logged = {}
        for member in self._running["transform"]:
            batch = member.new_batch(self)
        args, kwargs = ((batch, *args[1:]), kwargs) if args else (args, {**kwargs, "batch": batch})
        self._live = True
        try:
            with self._around():
                output = inner(*args, **kwargs)
            for call, value in self._mode.noted_calls() if self._mode is not None else ():
                self._read(call, value)
            output = self._finished(output)
        finally:
            self._live = False
            self._forget()
        for name, value in self.logged.items() if self.logs else ():
            self.module.log(f"train/{name}", value, batch_size=self.batch_size)
        self.steps += 1
        return output

    def _around(self) -> AbstractContextManager[Any]:
        """The context of the user's step: an empty one while no callback acts.

        If the mode only reads the criterion's calls, they do not break the graph of a compiled step; torch compiles one
        graph for reading and one for changing. In the first step it changes calls, because the proof needs that. After
        a step that changed a call it always does, so that no method costs a compilation when it begins or ends. A
        network that is compiled by itself stays in the mode, and so has one graph only.
        """
        if self._mode is None or self._named is not None:
            return self._mode or nullcontext()
        if not self._verified:
            self._compiled = any(map(is_compiled, self.module.modules()))
        changes = any(self._running[place] for place in _CHANGES)
        self._changed = self._changed or (changes and self._verified)
        self._mode.reads = self._verified and not self._changed
        idle = self._mode.reads and not self._running["term"]
        return nullcontext() if idle and not self._compiled else self._mode

    def _forget(self) -> None:
        """Drop all tensors of the step, so that its graph does not outlive it."""
        self.stacks.clear()
        if self._mode is not None:
            self._mode.notes.clear()
        self._calls, self._value, self._instead, self._output, self._losses = [], None, None, None, None
        self.signals.values.clear()

    def _head_forward(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._live:
            return inner(*args, **kwargs)
        if self._output is not None or len(args) != 1 or kwargs:
            raise ValueError(
                f"The head {self._head_path!r} is called several times in a step, or with more than its features, so "
                "no single call gives the logits. Name a module that the step calls once, as head(features), by head=."
            )
        self.signals.values |= {"features": args[0], "head": inner}
        if self._running["head"]:
            stacks = self._running["head"][0].stacks(self)
            self._output = stacks.mean(0)
            self.stacks.start(self._output, stacks)
        else:
            self._output = inner(*args)
        return self._output

    def _named_criterion(self, inner: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if not self._live or self._named is None:
            return inner(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # Criteria inside of it are not calls of the user's own.
            return self._caught(self._named.parse(inner, args, kwargs))

    def _caught(self, call: Call) -> Tensor:
        if not (call.input.requires_grad and torch.is_grad_enabled()):
            return call.value()  # This is a metric.
        self._calls.append(call)
        if len(self._calls) - 1 != (self.option("which") or 0):
            return call.value()
        self.caught_calls += 1
        try:
            self._value = self._objective(call)
        except ValueError as error:
            if self._verified or self.option("which") is not None:
                raise
            raise ValueError(f"{error} If you mean another criterion of this step, say which=1, 2, ...") from error
        return self._value

    def _read(self, call: Call, value: Tensor) -> None:
        """Do for a noted call what `_caught` does."""
        self._calls.append(call)
        if len(self._calls) - 1 == (self.option("which") or 0):
            self.caught_calls += 1
            self._value = value
            if any(self._running[place] for place in _CHANGES):
                self._instead = self._objective(call)
            else:
                self._keep(call, [call])

    def _objective(self, call: Call) -> Tensor:
        """The value of the criterion, changed by the callbacks that act now; without any, the criterion's own."""
        stacks = self.stacks.of(call.input)
        if self._running["head"] and stacks is None:
            raise ValueError(
                f"The criterion's input does not come from the head {self._head_path!r} by operations that the stacks "
                "can follow. Name the head with head=, or the criterion's call with which=."
            )
        original, weighting = call, self._running["weighting"]
        for member in (*self._running["transform"], *self._running["loss"]):
            call = member.rewrite(call, self)
        calls = [call] if stacks is None else [call.on(stack) for stack in stacks]
        self._keep(call, calls)
        if call is original and stacks is None and not weighting:
            return call.value()
        elements = _mean(calls)
        if weighting:
            weights = weighting[0].weigh(call, elements, self)
            # 0 * inf is NaN, so a weight of 0 must replace the loss instead of multiplying it.
            elements = torch.where(weights == 0, 0.0, elements * weights)
        return call.reduce(elements)

    def _keep(self, call: Call, calls: list[Call]) -> None:
        self.signals.add_call(call)
        self._losses = lambda: fold(call, _mean(calls), unit="sample", batch_size=self.batch_size).losses

    def _finished(self, output: Any) -> Any:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            return output
        if not self._verified and self._mode is not None:
            head = None if self._running["head"] else self._output
            user, which = type(self.module).__name__, self.option("which")
            prove(loss, self._calls, self._value, which=which, head=head, user=user, plan=self.plan())
            alone = loss is self._value and len(self._calls) == 1 and self._named is None
            self._mode.whole = alone and not any(member.place == "head" for member in self.members)
        self._verified = True
        if self._instead is not None:
            if loss is not self._value or len(self._calls) != 1:
                raise ValueError(
                    f"The compiled step of {type(self.module).__name__} returned the criterion's value so far, and now "
                    f"something else, on which {self.plan()} would have no effect. Return that value in each step, or "
                    "compile the network alone."
                )
            loss = self._instead
            output = {**output, "loss": loss} if isinstance(output, Mapping) else loss
        self.loss = loss
        terms = [member.term(self) for member in self._running["term"]]
        combined = self.loss
        if terms and self._running["combination"]:
            combined = self._running["combination"][0].combine([self.loss, *terms], self)
        else:
            for term in terms:
                combined = combined + term
        zero = self.extras.zero()
        if zero is not None:
            combined = combined + zero
        if combined is loss:
            return output
        return {**output, "loss": combined} if isinstance(output, Mapping) else combined

    def _sample_losses(self, signals: Signals) -> Tensor:
        if self._losses is None:
            raise ValueError(
                "The method asks for the signal 'losses' before the step has called its criterion, so there are none. "
                "Use a method that does not ask for them at this place."
            )
        return self._losses()

    def _progress(self, signals: Signals) -> Tensor:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "The length of the training is unknown, so 'progress' is too: set max_steps or max_epochs."
            )
        return torch.tensor(min(1.0, self.trainer.global_step / max(1, total)))


def _order(member: Member) -> tuple[int, str]:
    """Sorts by place, and by name within it, because the rounding of a sum must not depend on the user's list."""
    name = re.sub(r" at 0x\w+", "", member.state_key)  # The address of a function differs between processes.
    return PLACES.index(member.place), name


def _called(member: Member) -> str:
    return str(getattr(member.method, "__name__", type(member.method).__name__)).lower()


def _mean(calls: list[Call]) -> Tensor:
    """The unreduced losses, as the mean over the stacks if there are several."""
    losses = [call.elements for call in calls]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean(0)
