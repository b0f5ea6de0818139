"""Mixes the samples of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives._step.batch import with_tensor
from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.calls import Call, Derived
from lightning_objectives._step.plan import COMPILED, Plan
from lightning_objectives._step.step import Step
from lightning_objectives._step.taps import Tap
from lightning_objectives.kinds import BatchTransform
from lightning_objectives.signals import signals_from


@dataclass(eq=False)
class TransformBatch(StepCallback):
    """Mixes a copy of the inputs before the model's step, and mixes the losses when the step calls its criterion.

    A row that is mixed from samples with the shares w has the loss sum_k w_k loss(logits, target_k), with the model's
    own criterion: its class weights, its label smoothing and the targets that it ignores apply as ever. For cross
    entropy this is the loss of the mixed target. The model's own code sees its own targets. The draws come from a
    generator with a new seed for each batch. So the random stream of the training is untouched, and a resumed training
    draws the same. Several of these callbacks act in the order of the Trainer's list.

    A method that mixes hidden layers gets them by ``layers=``. It draws for each batch whether it mixes the inputs or
    the output of one of these layers, and a further pass over the batch is mixed alike. Each step must call these
    layers once.

    Args:
        transform: the method, ``(inputs, ...) -> (inputs, index, weight)``.

    Raises:
        ValueError: a method that mixes hidden layers without ``layers=``, or beside a teacher or a reference, which
            would not see the mixture; in the training, a layer that is not called once, or does not return the rows of
            the batch.
    """

    kind = BatchTransform
    place = "transform"

    transform: nn.Module | Callable[..., tuple[Tensor, Tensor, Tensor]]

    def methods(self) -> list[Any]:
        """The transform."""
        return [self.transform]

    @property
    def needs_layers(self) -> bool:
        """Whether the method mixes hidden layers, which the user must name."""
        return hasattr(self.transform, "draw_layer") or super().needs_layers

    def unsupported(self) -> dict[str, str]:
        """Add a compiled module, whose layers cannot be changed."""
        return super().unsupported() | ({"a_compiled_module": COMPILED} if self.needs_layers else {})

    def build(self, plan: Plan, head: nn.Module | None) -> None:
        """Find the layers, and refuse what would see the inputs without the mixture.

        Raises:
            ValueError: another callback asks for a teacher or a reference.
        """
        super().build(plan, head)
        unmixed = signals_from("teacher", "reference")
        other = next((member for member in plan.members if not unmixed.isdisjoint(member.signals)), None)
        if self.needs_layers and other is not None:
            raise ValueError(
                f"{self.transform} mixes hidden layers, and {type(other).__name__}({other.method}) compares the "
                "network with another one, which sees the inputs without the mixture. Mix the inputs, as Mixup does."
            )

    def transformed(self, step: Step) -> Any:
        """Mix the batch for the model's step, or let a layer mix what it returns."""
        original = step.get("inputs")
        signals = {name: self.signal(name, step) for name in self.signals}
        if isinstance(self.transform, BatchTransform) and hasattr(self.transform, "draw_layer"):
            number = self.transform.draw_layer(len(self.taps), signals["generator"])
            if number:
                mixture = HiddenMixture(self.transform, self.taps[number - 1], signals)
                step.kept[self] = mixture
                step.plan.capture.changes[mixture.tap] = mixture
                return step.user_batch
        step.values["inputs"] = original.clone()
        inputs, index, weight = self.transform(**(signals | {"inputs": step.values["inputs"]}))
        step.kept[self] = index, weight
        step.values["inputs"] = inputs
        return with_tensor(step.user_batch, original, inputs)

    def rewrite(self, call: Call, step: Step) -> Call:
        """Mix the losses of the criterion's call.

        Raises:
            ValueError: the criterion compares another number of rows than the batch has.
        """
        kept = step.kept[self]
        index, weight = kept.labels() if isinstance(kept, HiddenMixture) else kept
        if not getattr(self.transform, "keeps_size", True) and call.input.dim() > 2:
            raise ValueError(
                f"{self.transform} changes the size of the images, but the criterion compares "
                f"{tuple(call.input.shape)} with {tuple(call.target.shape)}: positions, whose targets keep their size. "
                "Use it for criteria that compare one row for each sample."
            )
        if call.input.dim() < 1 + call.by_class or not len(call.input) == len(call.target) == len(index):
            raise ValueError(
                f"{self.transform} mixed {len(index)} rows, but the criterion compares {tuple(call.input.shape)} with "
                f"{tuple(call.target.shape)}, so it is unknown which target belongs to which row. Remove "
                f"{type(self).__name__}, or compare one row for each sample."
            )
        weight = weight.to(call.input.dtype)
        if not isinstance(call, Mixed):
            return Mixed([call.with_targets_of(rows) for rows in index.unbind(1)], weight)
        # Each of its K rows is a mixture of L rows itself.
        pairs = [call.with_targets_of(rows) for rows in index.unbind(1)]
        shares = [pair.weight * share[:, None] for pair, share in zip(pairs, weight.unbind(1))]
        return Mixed([inner for pair in pairs for inner in pair.calls], torch.cat(shares, 1))


class HiddenMixture:
    """Mixes what a layer returns, alike in each pass over one batch.

    Args:
        transform: the method.
        tap: the layer.
        signals: what the method asks for, with the ``inputs`` of the network and the ``generator``.
    """

    def __init__(self, transform: Callable[..., tuple[Tensor, Tensor, Tensor]], tap: Tap, signals: Any) -> None:
        self.transform, self.tap = transform, tap
        self.rows, self.state = len(signals["inputs"]), signals["generator"].get_state()
        # The inputs are large, and this outlives the step: until the next one, for the backward pass.
        self.others = {name: value for name, value in signals.items() if name != "inputs"}
        self.drawn: tuple[Tensor, Tensor] | None = None

    def __call__(self, output: Any) -> Any:
        """The mixture of the rows of the layer's output.

        Raises:
            ValueError: the output has no row for each sample.
        """
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != self.rows:
            shape = f" of the shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
            raise ValueError(
                f"The layer {self.tap.path!r} of {self.tap.network} returns a {type(output).__name__}{shape}, but to "
                f"be mixed it must be a tensor with a row for each of the {self.rows} samples. Name another layer."
            )
        generator = torch.Generator()
        generator.set_state(self.state)
        mixed, *drawn = self.transform(**(self.others | {"inputs": output, "generator": generator}))
        self.drawn = drawn[0], drawn[1]
        return mixed

    def labels(self) -> tuple[Tensor, Tensor]:
        """The ``index`` and the ``weight`` of the rows.

        Raises:
            ValueError: the step did not call the layer once.
        """
        if self.drawn is None or len(self.tap.outputs) != 1:
            raise ValueError(
                f"{self.transform} mixes what the layer {self.tap.path!r} of {self.tap.network} returns, but the step "
                f"calls it {len(self.tap.outputs)} times before its criterion. Name layers that each step calls once."
            )
        return self.drawn


class Mixed(Derived):
    """A call of a criterion on mixed rows: the losses for the targets of several samples, times their shares.

    Args:
        calls: K calls with the same input, each with the targets of other samples.
        weight: (N, K) the shares.
    """

    def __init__(self, calls: list[Call], weight: Tensor) -> None:
        super().__init__(calls[0])
        self.calls, self.weight = calls, weight

    def _shares(self, like: Tensor) -> list[Tensor]:
        """The shares of each of the K targets, in the shape of the losses."""
        return [share.view(-1, *[1] * (like.dim() - 1)).expand_as(like) for share in self.weight.unbind(1)]

    def value(self) -> Tensor:
        """The mixed losses, reduced as the criterion does."""
        return self.weighted(torch.ones_like(self.calls[0].elements))

    @cached_property
    def elements(self) -> Tensor:
        """The mixed losses."""
        parts = [call.elements for call in self.calls]
        mixed = [torch.where(share == 0, 0.0, share * part) for share, part in zip(self._shares(parts[0]), parts)]
        return torch.stack(mixed).sum(0)

    def summed(self, weights: Tensor) -> Tensor:
        """The mixed losses times their weights."""
        parts = [call.summed(weights * share) for call, share in zip(self.calls, self._shares(weights))]
        return torch.stack(parts).sum(0)

    @cached_property
    def valid(self) -> Tensor | None:
        """Which rows count: those with at least one target that counts."""
        return self._any([call.valid for call in self.calls])

    @property
    def counted(self) -> Tensor | None:
        """Which rows have a target that is not to be ignored."""
        return self._any([call.counted for call in self.calls])

    def _any(self, parts: list[Tensor | None]) -> Tensor | None:
        if parts[0] is None:
            return None
        counts = [valid & (share > 0) for valid, share in zip(parts, self._shares(parts[0])) if valid is not None]
        return torch.stack(counts).any(0)

    @property
    def divisor(self) -> Tensor | int:
        """What a mean divides by: the mixture of what each target adds."""
        parts = [call.parts for call in self.calls]
        if parts[0] is None:
            return self.first.divisor
        pairs = [(share, part) for share, part in zip(self._shares(parts[0]), parts) if part is not None]
        if parts[0].dtype != torch.bool:
            return torch.stack([(share * part).sum() for share, part in pairs]).sum()
        # The shares sum to 1 but for rounding, so a row that counts whole must add 1 exactly.
        ignored = torch.stack([share * ~part for share, part in pairs]).sum(0)
        return torch.where(torch.stack([part for _, part in pairs]).any(0), 1 - ignored, 0.0).sum()

    @property
    def indexed(self) -> bool:
        """False: a mixed target holds probabilities."""
        return False

    @property
    def targets(self) -> Tensor:
        """(rows, C) the mixed targets."""
        return self.table(self.target)

    @cached_property
    def target(self) -> Tensor:  # type: ignore[override]  # an attribute that is computed
        """The mixed target, of the shape of the input; of class indices it is the distribution of those that count."""
        dtype = self.input.dtype
        total: Tensor | None = None
        sums: Tensor | None = None
        for call, share in zip(self.calls, self.weight.unbind(1)):
            target = call.target
            share = share.view(-1, *[1] * (target.dim() - 1)).to(dtype)
            if call.indexed:
                share = share.expand(target.shape)
                if call.valid is not None:
                    share = share * call.valid
                    target = torch.where(call.valid, target, 0)
                target = F.one_hot(target.long(), self.input.shape[call.class_dim or 0]).movedim(
                    -1, call.class_dim or 0
                )
                share = share.unsqueeze(call.class_dim or 0)
            part = share * target.to(dtype)
            total, sums = (part, share) if total is None or sums is None else (total + part, sums + share)
        assert total is not None
        assert sums is not None
        return total / torch.where(sums == 0, 1, sums) if self.first.valid is not None else total

    def on(self, substitute: Callable[[Tensor], Tensor]) -> "Mixed":
        """The same call with other tensors."""
        return Mixed([call.on(substitute) for call in self.calls], self.weight)

    def with_targets_of(self, rows: Tensor) -> "Mixed":
        """The same call with the targets of other rows."""
        return Mixed([call.with_targets_of(rows) for call in self.calls], self.weight[rows])
