"""Gradient-based parameter selection: a fine-tuning of a few weights of each neuron."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import GradientTransform
from lightning_objectives.shapes import check_shapes, check_tensors, forms

_SCORES = {"scores": forms("(...) float")}


def selected_weights(scores: Tensor, *, keep: int = 1) -> Tensor:
    """Select the input connections of each neuron whose scores have the greatest magnitudes.

    Args:
        scores: (outputs, ...), such as the gradient of a weight; all but the first dimension are the connections of one
            neuron.
        keep: how many connections of each neuron, >= 1; all, if it has fewer.

    Returns:
        a mask of the same shape, True for the selected weights.

    Raises:
        ValueError: scores without a second dimension, or a ``keep`` below 1.

    Example:
        >>> selected_weights(torch.tensor([[0.1, -3.0, 2.0], [0.5, 0.0, 0.2]]))
        tensor([[False,  True, False],
                [ True, False, False]])
    """
    check_shapes(_SCORES, scores=scores)
    _check(keep)
    if scores.dim() < 2:
        raise ValueError(
            f"scores of the shape {tuple(scores.shape)} must have two dimensions or more: the neurons, and the "
            "connections of each."
        )
    rows = scores.detach().abs().flatten(1)
    chosen = rows.topk(min(keep, rows.shape[1]), 1).indices
    return torch.zeros_like(rows, dtype=torch.bool).scatter(1, chosen, True).view(scores.shape)


def _check(keep: int) -> None:
    if keep < 1:
        raise ValueError(f"keep={keep} must be >= 1: the connections of each neuron that are trained.")


class GradientParameterSelection(GradientTransform):
    """Fine-tunes few weights of a pretrained network: the connections of each neuron with the greatest gradients (GPS).

    The gradients of the first ``selection_steps`` steps are added up at the weights of the start, which stay as they
    are meanwhile. The sums choose the weights by :func:`selected_weights`. From then on the gradients of all others are
    0. Tensors of one dimension, such as biases, and the last tensors of the module are trained whole.

    Args:
        keep: how many connections of each neuron are trained.
        selection_steps: the steps whose gradients choose. 1 chooses by the first batch, and loses no step. The steps of
            an epoch choose by the whole training set, as the authors do.
        exempt_last: how many parameter tensors at the end of the module are trained whole: the new head. 2 for a weight
            and a bias, 1 without a bias, 0 if the module does not end with its head.

    Raises:
        ValueError: a setting outside its range; at the start of the training, an optimizer with weight decay, which
            would move the weights that are not trained; in a training, a gradient of another shape than its parameter.

    When to use: to adapt a large pretrained network to little data. The authors train 1 connection of each neuron,
    0.36 % of a ViT.
    Cost: the optimizer's state and the backward pass are those of the whole network; one boolean for each weight in the
    checkpoint, and a sum in float32 until the choice. Each step makes a copy of the gradients.
    Interactions: freeze norms, embeddings of positions and class tokens with ``requires_grad_(False)``, as the authors
    do. While the weights are chosen all gradients are 0, and the schedule of the learning rate goes on.

    Example:
        >>> method, weights = GradientParameterSelection(exempt_last=0), [torch.zeros(2, 3)]
        >>> state = method.init(weights)
        >>> method.update([torch.tensor([[0.1, -3.0, 2.0], [0.5, 0.0, 0.2]])], weights, state)
        [tensor([[ 0.0000, -3.0000,  0.0000],
                [ 0.5000,  0.0000,  0.0000]])]
        >>> method.update([torch.ones(2, 3)], weights, state)
        [tensor([[0., 1., 0.],
                [1., 0., 0.]])]

    Paper: Zhang et al., Gradient-based Parameter Selection for Efficient Fine-Tuning, CVPR 2024,
    https://arxiv.org/abs/2312.10136. The choice is that of the authors' code.

    Differs from the authors' code: the gradient is that of the training's own loss. The code can also take a supervised
    contrastive loss on the features, so that the new head does not matter. Weight decay is refused; the code leaves out
    the weights that are not trained.
    """

    family = "fine-tuning"
    keeps_still = True

    def __init__(self, *, keep: int = 1, selection_steps: int = 1, exempt_last: int = 2) -> None:
        _check(keep)
        if selection_steps < 1:
            raise ValueError(f"selection_steps={selection_steps} must be >= 1: the steps whose gradients choose.")
        if exempt_last < 0:
            raise ValueError(f"exempt_last={exempt_last} must be >= 0; 0 selects in every tensor.")
        self.keep = keep
        self.selection_steps = selection_steps
        self.exempt_last = exempt_last

    def init(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """No step, no sums and no masks yet."""
        return {"steps": 0, "sums": [], "masks": []}

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """Choose in the first steps, and leave the gradients of the chosen weights alone."""
        check_tensors(params, gradients=gradients)
        if not state["masks"]:
            self._add(gradients, params, state)
            if state["steps"] < self.selection_steps:
                return [None if g is None else torch.zeros_like(g) for g in gradients]
            state["masks"] = [None if s is None else selected_weights(s, keep=self.keep) for s in state["sums"]]
            state["sums"] = []
        return [
            g if g is None or mask is None else torch.where(mask, g, 0.0) for g, mask in zip(gradients, state["masks"])
        ]

    def _add(self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]) -> None:
        """Add the gradients of the tensors in which weights are chosen."""
        chosen = len(params) - self.exempt_last
        if not state["sums"]:
            state["sums"] = [
                torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
                if place < chosen and p.dim() > 1
                else None
                for place, p in enumerate(params)
            ]
        # One gradient that is not finite would choose for the whole training.
        state["sums"] = [
            total if total is None or g is None else total + torch.where(g.isfinite(), g, 0.0)
            for total, g in zip(state["sums"], gradients)
        ]
        state["steps"] += 1
