"""Mixes the samples of a batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives._step.batch import with_inputs
from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.criterion import Call
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives._trainer.random import batch_seed
from lightning_objectives.kinds import BatchTransform


@dataclass(eq=False)
class TransformBatch(StepCallback):
    """Mixes a copy of the inputs before the model's step, and mixes the targets when the step calls its criterion.

    The model's own code sees its own targets. The draws come from a generator with a new seed for each batch. So the
    random stream of the training is untouched, and a resumed training draws the same.

    Args:
        transform: the method, ``(inputs, ...) -> (inputs, index, weight)``.
        seed: the seed of the draws, together with the rank and the number of the batch.
    """

    kind = BatchTransform
    place = "transform"
    refuses: ClassVar = {
        "binary_cross_entropy": "mixed targets can only replace targets of one class per row",
    }

    transform: nn.Module | Callable[..., tuple[Tensor, Tensor, Tensor]]
    seed: int = 0

    def methods(self) -> list[Any]:
        """The transform."""
        return [self.transform]

    def new_batch(self, pipeline: Pipeline) -> Any:
        """Mix the batch for the model's step."""
        signals = pipeline.signals
        generator = torch.Generator().manual_seed(batch_seed(self.seed, pipeline.trainer))
        signals.values |= {"inputs": signals.get("inputs").clone(), "generator": generator}
        inputs, index, weight = self.transform(**{name: signals.get(name) for name in self.signals})
        self._mixture: tuple[Tensor, Tensor] = index, weight
        signals.values["inputs"] = inputs
        return with_inputs(signals.batch, signals.input, inputs)

    def rewrite(self, call: Call, pipeline: Pipeline) -> Call:
        """Mix the target of the criterion's call.

        Raises:
            ValueError: the target has another number of rows than the batch, or holds no classes.
        """
        index, weight = self._mixture
        rows, classes = len(index), call.input.shape[-1]
        if not call.by_class or call.input.dim() != 2 or len(call.target) != rows:
            raise ValueError(
                f"{self.transform} mixed {rows} rows, but the criterion compares {tuple(call.input.shape)} with "
                f"{tuple(call.target.shape)}: {self.refuses['binary_cross_entropy']}. Remove {type(self).__name__}."
            )
        target = F.one_hot(call.target, classes) if call.indexed else call.target
        dtype = call.input.dtype
        mixed = torch.einsum("nk,nkc->nc", weight.to(dtype), target.to(dtype)[index])
        options = {name: value for name, value in call.options.items() if name != "ignore_index"}
        # Log-probabilities are logits too, but nll_loss cannot compare them with class probabilities.
        function = F.cross_entropy if call.function is F.nll_loss else call.function
        if call.indexed and function is not F.cross_entropy:
            function = _mixture(call, index, weight.to(dtype))
        return replace(call, function=function, target=mixed, options=options)


def _mixture(call: Call, index: Tensor, weight: Tensor) -> Callable[..., Tensor]:
    """Mix the losses for several classes, for a criterion that compares with one class per row only."""

    def function(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
        parts = [call.function(input, call.target[rows], reduction="none") for rows in index.unbind(1)]
        losses = torch.stack([share * part for share, part in zip(weight.unbind(1), parts)]).sum(0)
        return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()

    return function
