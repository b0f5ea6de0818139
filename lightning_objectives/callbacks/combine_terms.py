"""The terms of the objective combined by a method of the kind `Combination`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_objectives.callbacks.ranks import world_size
from lightning_objectives.callbacks.step import Pipeline
from lightning_objectives.callbacks.step_callback import StepCallback

WHOLE_GRADIENTS = "it compares whole gradients, of which a rank holds only a shard; use DDPStrategy"
"""Why :func:`flat_gradients` is refused under FSDP2."""


@dataclass(eq=False)
class CombineTerms(StepCallback):
    """Weights the model's own loss and the terms that other callbacks add, by their gradients.

    The first gradient is that of the model's own loss, the others are those of the terms in the order of their names.
    They are the means over the ranks, so that all ranks weigh the same; the update is still one backward pass of the
    weighted sum, which gradient scalers, clipping and accumulation see as any other loss. Logged as
    ``train/weight_0``, ``train/weight_1``, ...

    Args:
        combination: the method, ``gradients (K, P) -> weights (K,)``.
    """

    place = "combination"
    beside = ("AddRegularizer",)
    refuses: ClassVar = {"fsdp2": WHOLE_GRADIENTS}

    combination: nn.Module | Callable[..., Tensor]

    def combine(self, terms: Sequence[Tensor], pipeline: Pipeline) -> Tensor:
        """The weighted sum."""
        known = {name: pipeline.signals.get(name) for name in self.signals if name != "gradients"}
        if "gradients" in self.signals:
            known["gradients"] = flat_gradients(terms, pipeline)
        weights: Tensor = self.combination(**known)
        if weights.shape != (len(terms),):
            raise ValueError(
                f"{self.combination} gave weights of shape {tuple(weights.shape)} for {len(terms)} terms of the loss."
            )
        pipeline.logged |= {f"weight_{i}": weight for i, weight in enumerate(weights.detach())}
        return torch.stack([weight.to(term) * term for weight, term in zip(weights, terms)]).sum()


def flat_gradients(terms: Sequence[Tensor], pipeline: Pipeline) -> Tensor:
    """(K, P) the gradients of K terms by all P trained parameters, float32 at least, the mean over the ranks.

    Where a term does not reach a parameter there are zeros. No hook of a parameter fires, so that DDP's reducer waits
    for the one backward pass that follows. Under a gradient scaler the terms are scaled first, as that pass will be, so
    that half-precision gradients do not vanish here.
    """
    parameters = [parameter for parameter in pipeline.module.parameters() if parameter.requires_grad]
    scaler = getattr(pipeline.trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else scaler.get_scale()
    rows = []
    for term in terms:
        found = torch.autograd.grad(
            term * scale, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        parts = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)).flatten() for gradient in found]
        rows.append(torch.cat(parts) / scale)
    gradients = torch.stack(rows)
    if world_size() > 1:
        dist.all_reduce(gradients)
        gradients /= world_size()
    return gradients
