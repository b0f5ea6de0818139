"""TENT."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_objectives.adaptation._norms import affine_parameters, check_count
from lightning_objectives.kinds import Adapter
from lightning_objectives.shapes import check_classes, check_shapes


def softmax_entropy(logits: Tensor) -> Tensor:
    r"""Compute the entropy of each row's softmax, which is low where the network is sure.

    .. math::
        H = -\sum_c p_c \log p_c, \qquad p = \mathrm{softmax}(z)

    Args:
        logits: (N, C), in any float type; computed in float32 or better.

    Returns:
        (N,) entropies in nats.

    Raises:
        ValueError: logits of another shape, or of a single class.

    Example:
        >>> softmax_entropy(torch.zeros(1, 2))  # log 2
        tensor([0.6931])

    Paper: Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021, section 3.1,
    https://arxiv.org/abs/2006.10726.
    """
    check_shapes(logits=logits)
    check_classes(logits)
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = logits.to(wide).log_softmax(1)
    return -(log_probabilities.exp() * log_probabilities).sum(1)


class TENT(Adapter):
    r"""Makes the network surer of its predictions on shifted test data, by a step on each batch's mean entropy.

    BatchNorm layers normalize with the statistics of the test batch. After each batch, the scales and shifts of all
    normalization layers take one step down the mean :func:`softmax_entropy` of the batch. The predictions of a batch
    are those from before its step, so that the step acts on the next batch.

    Args:
        lr: the learning rate, :math:`\ge 0`. At 0 nothing moves, and BatchNorm normalizes with the batch's statistics.
        optimizer: ``adam``, or ``sgd`` with momentum.
        momentum: of ``sgd``, or the first beta of ``adam``, in [0, 1).

    Raises:
        ValueError: a setting out of its range; a network without scales or shifts of normalization layers; a batch with
            fewer than two values for each channel of a BatchNorm layer.

    When to use: if the test data are shifted (another camera, noise, weather) and come in large batches with many
    classes mixed. Avoid it with small batches, with batches of one class, and over long streams: the entropy is least
    where everything is one class. The defaults are those of the released code, for batches of 200 of CIFAR-10.
    Cost: one backward pass for each batch, without the gradients of the other weights, and the memory of a training
    step. The optimizer's state is that of the scales and shifts alone.
    Interactions: dropout stays off. Frozen scales and shifts move too, and are frozen again afterwards.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> list(TENT().adapts(network))
        ['1.weight', '1.bias']

    Paper: Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021, sections 3.1 to 3.3,
    https://arxiv.org/abs/2006.10726.

    Differs from the paper: its code adapts BatchNorm alone and wakes dropout, because it sets the network to train. A
    gradient that is not finite counts as zero here, so that one bad batch does not spoil the weights.
    """

    problems = ("classes", "binary")

    def __init__(self, *, lr: float = 1e-3, optimizer: Literal["adam", "sgd"] = "adam", momentum: float = 0.9) -> None:
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr={lr} must be finite and >= 0; 0 moves nothing.")
        if optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer={optimizer!r} must be 'adam' or 'sgd'.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be >= 0 and < 1.")
        self.lr = lr
        self.optimizer: Literal["adam", "sgd"] = optimizer
        self.momentum = momentum

    def statistics(self, inputs: Tensor, mean: Tensor | None, var: Tensor | None) -> None:
        """Those of the batch."""
        check_count(inputs)

    def adapts(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The scales and shifts of the normalization layers."""
        params = affine_parameters(network)
        if not params:
            raise ValueError(
                f"{self} adapts the scales and shifts of normalization layers, but {type(network).__name__} has none "
                "(of BatchNorm, LayerNorm, GroupNorm, InstanceNorm or RMSNorm with affine parameters). Use an adapter "
                "that changes the outputs alone, such as LAME()."
            )
        return params

    def init(self, params: Mapping[str, nn.Parameter]) -> dict[str, Any]:
        """A fresh optimizer."""
        if self.optimizer == "adam":
            return {"optimizer": torch.optim.Adam(params.values(), lr=self.lr, betas=(self.momentum, 0.999))}
        return {"optimizer": torch.optim.SGD(params.values(), lr=self.lr, momentum=self.momentum)}

    def update(
        self,
        logits: Tensor,
        features: Tensor,
        params: Mapping[str, nn.Parameter],
        state: dict[str, Any],
        *,
        again: Callable[[], tuple[Tensor, Tensor]],
    ) -> None:
        """One step down the mean entropy."""
        entropy = softmax_entropy(logits).mean()
        gradients = torch.autograd.grad(entropy, list(params.values()), allow_unused=True)
        finite = [gradient.isfinite().all() for gradient in gradients if gradient is not None]
        if not finite:
            raise ValueError(f"{self} adapts {', '.join(params)}, but the logits depend on none of them.")
        usable = torch.stack(finite).all()
        for parameter, gradient in zip(params.values(), gradients):
            parameter.grad = None if gradient is None else gradient.where(usable, 0)
        state["optimizer"].step()
        state["optimizer"].zero_grad()
