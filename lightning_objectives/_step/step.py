"""One training step of the user's, changed by the callbacks that act in it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._step.batch import batch_size_of, tensors_of
from lightning_objectives._step.called import CalledSignals
from lightning_objectives._step.calls import Call
from lightning_objectives._step.chunks import value_beside
from lightning_objectives._step.criteria import Criteria
from lightning_objectives._step.graph import reaches
from lightning_objectives._step.head import view_of
from lightning_objectives._step.member import CHANGES, PLACES, Member
from lightning_objectives._step.proof import prove
from lightning_objectives._step.stacks import OneByOne, on_stacks, repeated, stacked
from lightning_objectives._trainer.names import numbered
from lightning_objectives.signals import signals_from


class Step(CalledSignals):
    """Holds the state of one training step, and dies with it: no tensor has to be forgotten by hand.

    The order of what happens: batch transform -> the user's own step, with the head wrapped and the criterion caught ->
    per-sample losses (the model's own, or the replacement) -> weights -> the reduction and the divisor that the model
    asked for -> added terms -> their combination.

    Args:
        plan: the plan of the fit.
        batch: the user's batch.
        index: the index of the samples that came with the batch.
        of_batch: what the callbacks keep for all passes over the batch, because it does not depend on the weights.
    """

    def __init__(self, plan: Any, batch: Any, index: Tensor | None, of_batch: dict[Any, Any]) -> None:
        super().__init__(plan, batch, index)
        number, every = self.trainer.global_step, 0 if self.trainer.barebones else self.trainer.log_every_n_steps
        self.running: dict[str, list[Member]] = {
            place: [m for m in plan.members if m.place == place and m.active(number)] for place in PLACES
        }
        """The callbacks that act in this step, by place."""
        self.user_batch = batch
        """The batch that the user's step gets."""
        self.logs: bool = every > 0 and number % every in (0, every - 1)
        """Whether this step is logged: `log` is slow, and Lightning's loggers keep one step in `log_every_n_steps`."""
        self.logged: dict[str, Tensor] = {}
        """The values that the step logs under ``train/``."""
        self.loss: Tensor
        """The loss that the user's step returned; a term that combines itself with it may replace it."""
        self.head_output: Tensor | None = None
        self.criteria = Criteria() if any(m.criteria for m in self.running["combination"]) else None
        """The criteria as terms of the loss, if a combination weights them."""
        self.weights: Tensor | None = None
        """The weights so far of the rows of all ranks, if several callbacks weight them."""
        self.of_batch = of_batch
        self.kept: dict[Member, Any] = {}
        """What a callback keeps for the rest of the step."""
        self._stacks: Tensor | OneByOne | None = None
        """The stacks (M, N, ...) of a wrapped head, or what they are computed from."""
        self._head_calls = 0
        self.calls: list[Call] = []
        """The calls of criteria so far on tensors that need a gradient."""
        self._value: Tensor | None = None
        """What the user's code got as the criterion's value."""
        self._instead: Tensor | None = None
        """The value that replaces the criterion's in the loss of a compiled step."""
        self._late: tuple[Call, Tensor] | None = None
        """A call whose losses the user's code reduces itself, and these losses: they are weighted afterwards."""
        self._values: list[Tensor] = []
        """What the user's code got for each call."""
        self._refusal: ValueError | None = None
        """Why the callbacks cannot act on the first call, while it is unknown whether they are to act on it."""

    @property
    def changes(self) -> bool:
        """Whether a callback changes the criterion's value in this step."""
        in_chunks = self.plan.chunks_criterion and bool(self.running["term"])
        return in_chunks or self.criteria is not None or any(self.running[place] for place in CHANGES)

    def run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the user's step, and return its output with the loss that the callbacks make of it."""
        batch = self.batch
        for member in self.running["transform"]:
            batch = self.user_batch = member.transformed(self)
        args, kwargs = ((batch, *args[1:]), kwargs) if args else (args, {**kwargs, "batch": batch})
        capture = self.plan.capture
        if self.plan.follows_batch:
            capture.trace.start_batch(tensors_of(self.user_batch))
        try:
            with capture.listening(self, self.plan.mode_of(self)):
                output = inner(*args, **kwargs)
            for call, value in capture.mode.noted_calls() if capture.mode is not None else ():
                self._read(call, value)
            output = self._finished(output)
        finally:
            capture.forget()
        for name, value in self.logged.items() if self.logs else ():
            self.module.log(f"train/{name}", value, batch_size=batch_size_of(self._part))
        return output

    # -- the calls -----------------------------------------------------------------------------------------------------

    def on_head(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give the head's output to the user's code, or the mean of its stacks."""
        self._head_calls += 1
        features = (*args, *kwargs.values())
        if self._head_calls > 1 or len(features) != 1:
            if not self.plan.needs_head:  # It is only followed, to know the samples.
                self.plan.capture.trace.output = None
                return inner(*args, **kwargs)
            raise ValueError(
                f"The head {self.plan.head_path!r} is called several times in a step, or with more than its features, "
                "so no single call gives the logits. Name a module that the step calls once, as head(features), by "
                "head=."
            )
        if self.plan.head is not None:
            self.values |= {"features": features[0], "head": view_of(self.plan.head, inner)}
        wrapped = self.running["head"]
        output = self._stacked(wrapped[0]) if wrapped else inner(*args, **kwargs)
        self.head_output = output if isinstance(output, Tensor) else None
        if self.plan.follows and self.head_output is not None:
            self.plan.capture.trace.start(self.head_output)
        return output

    def _stacked(self, member: Member) -> Tensor:
        if not torch.is_grad_enabled():
            raise ValueError(
                f"{type(member).__name__} cannot wrap the head {self.plan.head_path!r}, because your code calls it "
                "without gradients, as checkpoint(..., use_reentrant=True) does. Use checkpoint(..., "
                "use_reentrant=False)."
            )
        signals = {name: member.signal(name, self) for name in {*member.signals, "features", "head"}}
        self.plan.capture.on_recompute = repeated(member, signals)
        output, self._stacks = stacked(member, signals)
        return output

    def on_call(self, call: Call) -> Tensor:
        """Give a value to the user's code for a call of a criterion."""
        if not (call.input.requires_grad and torch.is_grad_enabled()):
            return call.value()  # This is a metric.
        self.calls.append(call)
        is_chosen, late = self.plan.catches and self._is_chosen(call), self._late
        value = self._chosen_value(call) if is_chosen else call.value()
        if self.criteria is not None:
            value = self.criteria.gated(call.name, value)
        if self._late is not late:
            self._late = call, value
        if is_chosen:
            self._value = value
        self._values.append(value)
        # In-place changes by the user's code must not reach the losses that are weighted afterwards.
        return value if self._late is late else value.clone()

    def _chosen_value(self, call: Call) -> Tensor:
        """The value of the call that the callbacks act on."""
        self.plan.caught_calls += 1
        try:
            return self._objective(call)
        except ValueError as error:
            if self.plan.verified or self.plan.option("which") is not None:
                raise
            self._refusal = error
        try:
            return call.value()
        except Exception as failure:  # What the callbacks refuse may be what the criterion cannot compute either.
            raise self._refusal from failure

    def _is_chosen(self, call: Call) -> bool:
        """Whether the callbacks act on this call, the latest: by the user's choice, or by the proof of the first step.

        Before the proof it is the first call; others may be metrics, whose values are not in the loss.
        """
        which = self.plan.option("which")
        if which is None and self.plan.chosen is not None:
            of_name = [other for other in self.calls if other.name == call.name]
            return bool(self.plan.chosen == (call.name, len(of_name) - 1))
        return len(self.calls) - 1 == int(which or 0)

    def _read(self, call: Call, value: Tensor) -> None:
        """Do for a noted call what `on_call` does."""
        self.calls.append(call)
        self._values.append(value)
        if self._is_chosen(call):
            self.plan.caught_calls += 1
            self._value = value
            if self.changes:
                self._instead = self._objective(call)
            else:
                self.call = self.user_call = call

    def _objective(self, call: Call) -> Tensor:
        """The value of the criterion, changed by the callbacks that act now; without any, the criterion's own."""
        self.user_call = call = self.plan.host.settled(call)
        if not self.plan.verified:
            for member in self.plan.members:
                member.check(call)
        for member in (*self.running["transform"], *self.running["loss"]):
            call = member.rewrite(call, self)
        if self.running["head"]:
            call = on_stacks(call, self._stacks, self.plan.capture.trace, self.plan.head_path)
        self.call = call
        if not self.running["weighting"]:
            return value_beside([member.method for member in self.running["term"]], call, self.plan)
        if not call.is_reduced:
            self._late = call, call.elements
            return call.elements
        return call.weighted(self._weights(call, call.elements, call.valid))

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _finished(self, output: Any) -> Any:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            return output
        # A step with another criterion than that of the first step is a first step again.
        is_proved = self.plan.verified and (self._value is not None or not self.calls)
        self.loss = self._replaced(loss if is_proved else self._proved(loss))
        if self._late is not None:
            self.loss = self._weighted(*self._late)
        terms = [term for term in (member.term(self) for member in self.running["term"]) if term is not None]
        combined = self.loss
        if self.running["combination"] and (terms or self.criteria is not None):
            own, rest = self._own_terms()
            combined = self.running["combination"][0].combine([*own, *terms], self)
            combined = combined if rest is None else combined + rest
        else:
            combined = sum(terms, combined)
        zero = self.plan.extras.zero()
        if zero is not None:
            combined = combined + zero
        if combined is loss:
            return output
        return {**output, "loss": combined} if isinstance(output, Mapping) else combined

    def _own_terms(self) -> tuple[list[Tensor], Tensor | None]:
        """The terms of the model's own loss, and what is left of it: the loss as a whole, or its criteria."""
        if self.criteria is None:
            return [self.loss], None
        return self.criteria.split(self.loss, type(self.module).__name__)

    def _proved(self, loss: Tensor) -> Tensor:
        """Prove in the first step that the plan has its effect, and return the loss with it."""
        plan, mode = self.plan, self.plan.capture.mode
        if plan.catches:
            which = plan.option("which")
            inside = [i for i, value in enumerate(self._values) if reaches(loss, value)]
            refusal, self._refusal = self._refusal, None  # Its traceback refers to this step.
            if refusal is not None and (inside == [0] or len(self.calls) == 1):
                raise refusal
            del refusal
            changed = loss
            if which is None and len(inside) == 1:
                which = inside[0]
                name = self.calls[which].name
                plan.chosen = name, sum(call.name == name for call in self.calls[:which])
                if self._value is not self._values[which]:  # The calls before it are metrics.
                    changed = self._changed_afterwards(loss, which)
            head = self.head_output if plan.needs_head and not self.running["head"] else None
            user = type(self.module).__name__
            prove(loss, self.calls, self._value, which=which, head=head, user=user, plan=plan.words())
            loss = changed
        if mode is not None and not plan.verified:
            alone = loss is self._value and len(self.calls) == 1 and plan.capture.named is None
            mode.whole = alone and not any(member.place == "head" or member.criteria for member in plan.members)
        plan.verified = True
        return loss

    def _changed_afterwards(self, loss: Tensor, which: int) -> Tensor:
        """The loss with the change of a call whose own value the user's code got already."""
        self._late = None
        for name in signals_from("criterion"):  # They are those of the first call.
            self.values.pop(name, None)
        plain = self._value = self._values[which]
        changed = self._objective(self.calls[which])
        late: tuple[Call, Tensor] | None = self._late
        if late is not None:
            self._late = late[0], plain
            return loss
        if self.criteria is not None:
            changed = self.criteria.changed(plain, changed)
        (factors,) = torch.autograd.grad(loss, plain, retain_graph=True, create_graph=True)
        return loss + (factors * (changed - plain)).sum()

    def _replaced(self, loss: Tensor) -> Tensor:
        """The loss of a compiled step, in which the criterion's value could not be replaced where it was computed."""
        if self._instead is None:
            return loss
        if loss is not self._value or len(self.calls) != 1:
            raise ValueError(
                f"The compiled step of {type(self.module).__name__} returned the criterion's value so far, and now "
                f"something else, on which {self.plan.words()} would have no effect. Return that value in each step, "
                "or compile the network alone."
            )
        return self._instead

    def _weights(self, call: Call, elements: Tensor, valid: Tensor | None) -> Tensor:
        """The weights of the elements of a call; each weighting goes on from those before it."""
        self.weights, self.counted = None, valid
        for member in self.running["weighting"]:
            weights = member.weigh(call, elements, valid, self)
        return weights

    def _weighted(self, call: Call, elements: Tensor) -> Tensor:
        """Weight losses that the user's code has reduced itself: it may have masked and scaled them.

        Each loss has a factor in the result, its gradient. Those with the factor 0 do not count.
        """
        # The factors may depend on parameters too, as in a learned scale; a compiled graph has no second derivative.
        settings: Any = {"retain_graph": True, "create_graph": not self.plan.is_partly_compiled}
        factors = torch.autograd.grad(self.loss, elements, materialize_grads=True, **settings)[0]
        counts = factors != 0
        valid = counts if call.valid is None else counts & call.valid
        weights = self._weights(call, elements, valid)
        change = torch.where(counts & (weights != 1), factors * (weights - 1) * elements, 0.0).sum()
        if self.logs:
            plain = torch.where(counts, factors * elements, 0.0).sum().detach()
            self.logged |= {"weighted_loss": plain + change.detach(), "unweighted_loss": plain}
        return self.loss + change

    def log_term(self, member: Member, value: Tensor) -> None:
        """Log the value of a term under its method's name, with a number from the second of this name on."""
        if self.logs:
            names: list[str] = []
            terms = [m for m in self.plan.members if m.place == "term"]
            for term in terms:
                names.append(numbered(_called(term), names))
            self.logged[names[terms.index(member)]] = value.detach()


def _called(member: Member) -> str:
    return str(getattr(member.method, "__name__", type(member.method).__name__)).lower()
