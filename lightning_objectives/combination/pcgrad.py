"""PCGrad: gradients of terms that conflict are projected onto each other's normal planes."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes


def pcgrad_weights(gradients: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Compute weights of the terms whose sum is that of the projected gradients.

    For each i, :math:`h_i` begins as :math:`g_i`. For the other j, in a random order,

    .. math::
        h_i \leftarrow h_i - \frac{\min(0, \langle h_i, g_j \rangle)}{\|g_j\|^2}\, g_j, \qquad
        \sum_k w_k g_k = \sum_i h_i

    Args:
        gradients: (K, P) the flattened gradients.
        generator: what draws the orders; None draws from the global stream.

    Returns:
        (K,) weights >= 1, float32 at least, without gradient. Gradients that are zero or not finite project nothing.

    Raises:
        ValueError: gradients of another shape.

    Example:
        >>> pcgrad_weights(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))  # h: (1/2, 1/2) and (0, 1)
        tensor([2.0000, 1.5000])

    Paper: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1,
    https://arxiv.org/abs/2001.06782.

    Differs from the paper: we weight the terms instead of projecting their gradients, which is the same update. Differs
    from the authors' code: the orders are random, as in the paper, and no gradient is projected onto itself.
    """
    check_shapes(gradients=gradients)
    gradients = gradients.detach().to(torch.promote_types(gradients.dtype, torch.float32))
    products = gradients @ gradients.T
    # Row i says how h_i is made of the gradients.
    shares = torch.eye(len(gradients), dtype=gradients.dtype, device=gradients.device)
    for i in range(len(gradients)):
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            if j != i:
                conflict = -(shares[i] @ products[:, j]) / products[j, j]
                shares[i, j] += torch.where(conflict.isfinite(), conflict, 0.0).clamp_min(0.0)
    return shares.sum(0)


class PCGrad(Combination):
    """Keeps tasks from working against each other: removes from each gradient what opposes another one.

    The weights are those of :func:`pcgrad_weights`.

    When to use: if several tasks share a network and train worse together than alone, because their gradients conflict.
    Cost: a backward pass through the network for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients.
    Interactions: without conflict the update is the plain sum. The more the gradients conflict, the larger the weights.

    Example:
        >>> PCGrad()(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([1., 1.])
    """

    function = staticmethod(pcgrad_weights)
    family = "multi-task"

    def forward(self, gradients: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(K, P) gradients -> (K,) weights."""
        return pcgrad_weights(gradients, generator)
