"""L2-SP: weight decay towards the weights with which a fine-tuning starts."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_objectives.kinds import Regularizer


class L2SP(Regularizer):
    r"""Holds a network that is fine-tuned near its pretrained weights.

    .. math::
        \frac{\alpha}{2} \| w_S - w_S^0 \|^2 + \frac{\beta}{2} \| w_{\bar S} \|^2

    with :math:`w_S` the pretrained parameters, :math:`w_S^0` their values in the reference, and :math:`w_{\bar S}` the
    new ones: those of the head, and those that the reference does not have.

    Args:
        alpha: the strength of the pull to the reference.
        beta: the strength of the pull to zero, for new parameters.
        new_head: whether the head is new; if not, it is pulled to the reference too.

    Raises:
        ValueError: a negative strength; in the training, a parameter of another shape than the reference's, or a
            reference that has none of the parameters.

    When to use: with :class:`Refer` beside it, to fine-tune a pretrained network on little data. The authors choose
    both strengths on a validation set; the defaults are those of their code.
    Cost: one pass over the parameters in each step, and a copy of them. No forward pass.
    Interactions: switch the optimizer's weight decay off, which pulls the same parameters to zero. An optimizer such as
    AdamW sees the term in the gradient, not decoupled from it. The sum is over all parameters with a gradient, so its
    value grows with the network.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> nn.init.ones_(network[0].weight), nn.init.ones_(network[1].weight)  # doctest: +ELLIPSIS
        (...)
        >>> L2SP(alpha=2.0, beta=4.0)(network, network[1], {"0.weight": torch.tensor([[4.0]])})  # 9 + 2
        tensor(11., grad_fn=<AddBackward0>)

    Paper: Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018,
    https://arxiv.org/abs/1802.01483. Not checked at the source: the number of the equation.
    """

    family = "fine-tuning"
    coupled = "it is one number for the weights"

    def __init__(self, *, alpha: float = 0.01, beta: float = 0.01, new_head: bool = True) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must be >= 0; 0 leaves this part out.")
        self.alpha = alpha
        self.beta = beta
        self.new_head = new_head

    def forward(self, network: nn.Module, head: nn.Module, reference_weights: Mapping[str, Tensor]) -> Tensor:
        """The network, its head, and the parameters of the reference by name -> a scalar."""
        of_head = {id(parameter) for parameter in head.parameters()} if self.new_head else set()
        pulled, new = [], []
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            start = None if id(parameter) in of_head else reference_weights.get(name)
            if start is None:
                new.append(_wide(parameter).square().sum())
            elif start.shape != parameter.shape:
                raise ValueError(
                    f"The parameter {name!r} has the shape {tuple(parameter.shape)}, and in the reference "
                    f"{tuple(start.shape)}. Refer to weights of the same network."
                )
            else:
                pulled.append((_wide(parameter) - _wide(start)).square().sum())
        if not pulled:
            raise ValueError(
                f"The reference has none of the parameters of {type(network).__name__} outside of its head: it has "
                f"{', '.join(list(reference_weights)[:3])}. Refer to weights of the same network."
            )
        penalty = self.alpha / 2 * torch.stack(pulled).sum()
        return penalty + self.beta / 2 * torch.stack(new).sum() if new else penalty


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
