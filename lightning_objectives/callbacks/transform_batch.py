"""The batch made anew by a method of the kind `BatchTransform`."""

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
from lightning_objectives.kinds import BatchTransform


@dataclass(eq=False)
class TransformBatch(StepCallback):
    """Mixes a copy of the inputs before the model's step, and the targets at the criterion.

    The model's own code sees its own targets. The draws come from a generator that is seeded anew for each batch, so
    that the training's random stream is untouched and a resumed training draws the same.

    Args:
        transform: the method, ``(inputs, ...) -> (inputs, index, weight)``.
        seed: of the draws, together with the rank and the number of the batch.
    """

    kind = BatchTransform
    place = "transform"
    refuses: ClassVar = {
        "binary_cross_entropy": "the mixed targets can only be put in the place of one class a row",
    }

    transform: nn.Module | Callable[..., tuple[Tensor, Tensor, Tensor]]
    seed: int = 0

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.transform]

    def mixed(self, pipeline: Pipeline) -> Any:
        """The batch that the model's step gets."""
        signals, trainer = pipeline.signals, pipeline.trainer
        draw = (self.seed << 40) + (trainer.global_rank << 32) + trainer.fit_loop.total_batch_idx
        generator = torch.Generator().manual_seed(draw % 2**63)
        signals.made |= {"inputs": signals.get("inputs").clone(), "generator": generator}
        new, index, weight = self.transform(**{name: signals.get(name) for name in self.signals})
        self._mixture: tuple[Tensor, Tensor] = index, weight
        signals.made["inputs"] = new
        return with_inputs(signals.batch, signals.input, new)

    def rewrite(self, call: Call, pipeline: Pipeline) -> Call:
        """The criterion's call with the mixed target.

        Raises:
            ValueError: the target has other rows than the batch, or is not one of classes.
        """
        index, weight = self._mixture
        rows, classes = len(index), call.input.shape[-1]
        if not call.by_class or call.input.dim() != 2 or len(call.target) != rows:
            raise ValueError(
                f"{self.transform} mixed {rows} rows, but the criterion compares {tuple(call.input.shape)} with "
                f"{tuple(call.target.shape)}: {self.refuses['binary_cross_entropy']}."
            )
        target = F.one_hot(call.target, classes) if call.indexed else call.target
        dtype = call.input.dtype
        mixed = torch.einsum("nk,nkc->nc", weight.to(dtype), target.to(dtype)[index])
        options = {name: value for name, value in call.options.items() if name != "ignore_index"}
        # log-probabilities are logits too, and nll_loss takes no class probabilities
        function = F.cross_entropy if call.function is F.nll_loss else call.function
        if call.indexed and function is not F.cross_entropy:
            function = _mixture(call, index, weight.to(dtype))
        return replace(call, function=function, target=mixed, options=options)


def _mixture(call: Call, index: Tensor, weight: Tensor) -> Callable[..., Tensor]:
    """A criterion that takes classes alone: the mixture of its losses for the classes that are mixed."""

    def function(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
        parts = [call.function(input, call.target[rows], reduction="none") for rows in index.unbind(1)]
        losses = torch.stack([share * part for share, part in zip(weight.unbind(1), parts)]).sum(0)
        return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()

    return function
