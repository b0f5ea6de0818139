"""Computes the gradients of the terms of a step, and a loss whose backward pass hands out their weighted sum."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_objectives._step.step import Step
from lightning_objectives._trainer.ranks import world_size

WHOLE_GRADIENTS = "it compares whole gradients, of which a rank holds only a shard; use DDPStrategy"
"""Why :class:`Gradients` are refused under FSDP2."""


class Gradients:
    """Computes the gradient of each term of a step once.

    DDP's reducer does not see these gradients: it waits for the backward pass. Under a gradient scaler the terms are
    scaled first, so that half-precision gradients do not vanish.

    Args:
        terms: K scalars.
        step: the running step, whose module has the trained parameters that count.
    """

    rows: Tensor
    """(K, P) for all P trained parameters, float32 at least, the mean over the ranks; 0 for those out of reach."""

    def __init__(self, terms: Sequence[Tensor], step: Step) -> None:
        self.terms = terms
        reached = {id(leaf): leaf for leaf in leaves_of(terms)}
        trained = [parameter for parameter in step.module.parameters() if parameter.requires_grad]
        self._sizes = [parameter.numel() for parameter in trained]
        self._trained = [reached.pop(id(parameter), None) for parameter in trained]
        self._others = list(reached.values())
        """The other leaves that the terms reach, such as an input that needs a gradient."""
        self._leaves = [*(leaf for leaf in self._trained if leaf is not None), *self._others]
        scale = loss_scale(step.trainer, terms[0])
        rows, self._of_others = [], []
        for term in terms:
            scaled = term * scale
            gradients = list(torch.autograd.grad(scaled, self._leaves, retain_graph=True, materialize_grads=True))
            self._of_others.append([gradients.pop() / scale for _ in self._others][::-1])
            reaching = iter(gradients)
            parts = [torch.zeros_like(p) if leaf is None else next(reaching) for p, leaf in zip(trained, self._trained)]
            row = torch.cat([part.to(torch.promote_types(part.dtype, torch.float32)).flatten() for part in parts])
            row /= scale
            rows.append(row)
        self.rows = torch.stack(rows)
        if world_size() > 1:
            dist.all_reduce(self.rows)
            self.rows /= world_size()

    def weighted(self, weights: Tensor) -> Tensor:
        """The weighted sum of the terms, as a loss whose backward pass hands the known gradients to the parameters.

        DDP, gradient scaling and accumulation work as for any other loss. The backward pass does not run through the
        network again, with two exceptions: a parameter has a hook, which would change its gradient twice; or the
        weights have gradients of their own.
        """
        if weights.requires_grad or any(leaf._backward_hooks for leaf in self._leaves):
            return weighted_sum(self.terms, weights)
        with torch.no_grad():
            value = weighted_sum(self.terms, weights)
            joined = torch.split(weights.to(self.rows) @ self.rows, self._sizes)
            gradients = [part.view_as(leaf) for part, leaf in zip(joined, self._trained) if leaf is not None]
            gradients += [weighted_sum(terms, weights) for terms in zip(*self._of_others)]
        loss: Tensor = _HandOver.apply(value, gradients, *self._leaves)
        return loss


def loss_scale(trainer: Any, loss: Tensor) -> Tensor | float:
    """What the Trainer's gradient scaler multiplies a loss by, without a wait for the device; 1 without a scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale: Tensor = scaler.scale(torch.ones((), device=loss.device))
    return scale


class _HandOver(torch.autograd.Function):
    """Gives a value the gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [leaf.dtype for leaf in leaves]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *((part * grad).to(dtype) for part, dtype in zip(ctx.saved_tensors, ctx.dtypes))


def weighted_sum(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of tensors of one shape; each keeps its type."""
    return torch.stack([weight.to(term) * term for weight, term in zip(weights, terms)]).sum(0)


def leaves_of(terms: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that a backward pass from the terms would reach.

    >>> weight, frozen = torch.ones(2, requires_grad=True), torch.ones(2)
    >>> [leaf is weight for leaf in leaves_of([(weight * frozen).sum(), weight.exp().sum()])]
    [True]
    """
    leaves = {id(term): term for term in terms if term.is_leaf and term.requires_grad}
    waiting = [term.grad_fn for term in terms if term.grad_fn is not None]
    visited = set(waiting)
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            leaf: Tensor = node.variable  # type: ignore[attr-defined]  # of this node alone
            leaves[id(leaf)] = leaf
        fresh = {parent for parent, _ in node.next_functions if parent is not None} - visited
        visited |= fresh
        waiting += fresh
    return list(leaves.values())
