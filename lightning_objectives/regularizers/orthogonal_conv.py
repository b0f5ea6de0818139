"""Orthogonal convolutions."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.kinds import Regularizer

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def kernel_orthogonality(weight: Tensor, *, stride: Sequence[int], groups: int = 1) -> Tensor:
    r"""Compute how far a convolution is from an isometry, for images of any size.

    .. math::
        L(K) = \left\| \mathrm{conv}(K, K) - I \right\|_F^2 - \max(M - C S^d, 0)

    The filters are convolved with each other, with the stride of the layer and the padding
    :math:`\lfloor (k - 1) / S \rfloor S`. I is the identity of the filters at the middle, and 0 elsewhere. With more
    filters M than there are numbers for each output, :math:`C S^d`, they cannot all be orthogonal. The constant is what
    remains then, if the transposed map is an isometry.

    Args:
        weight: (M, C, ...) with one, two or three further dimensions; computed in float32 or better.
        stride: S for each of these.
        groups: of the layer. Each group is a convolution of its own, with C channels.

    Returns:
        a number >= 0; 0 for an orthogonal convolution.

    Raises:
        ValueError: a weight of other dimensions, not one stride for each, or filters that the groups do not divide.

    Example:
        >>> kernel_orthogonality(2 * torch.eye(2)[..., None], stride=(1,))  # (4 - 1)² for each of two filters
        tensor(18.)
    """
    sizes = weight.shape[2:]
    if len(sizes) not in _CONVOLVE or len(stride) != len(sizes) or weight.shape[0] % groups:
        raise ValueError(
            f"weight of the shape {tuple(weight.shape)} with stride={tuple(stride)} and groups={groups} must be that "
            "of a convolution in one, two or three dimensions, with a stride for each, and filters that the groups "
            "divide."
        )
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    filters, channels = weight.shape[0] // groups, weight.shape[1]
    padding = [(size - 1) // step * step for size, step in zip(sizes, stride)]
    # Row a of this batch holds filter a of every group, so that groups are compared with themselves alone.
    batch = weight.view(groups, filters, channels, *sizes).transpose(0, 1).flatten(1, 2)
    with torch.autocast(weight.device.type, enabled=False):
        products = _CONVOLVE[len(sizes)](batch, weight, stride=list(stride), padding=padding, groups=groups)
    # Filter b of every group in the columns, as in the products; the identity lies at the middle.
    own = torch.eye(filters, dtype=weight.dtype, device=weight.device).repeat(1, groups)
    around = [pad // step for pad, step in zip(padding, stride) for _ in range(2)]
    identity = F.pad(own[(..., *[None] * len(sizes))], around[::-1])
    distance = (products - identity).square().sum()
    return distance - groups * max(filters - channels * math.prod(stride), 0)


def orthogonal_conv(network: nn.Module, *, linear: bool = False) -> Tensor:
    """Add up :func:`kernel_orthogonality` over the convolutions of a network.

    Args:
        network: the module whose layers are looked at.
        linear: whether linear layers count too, as convolutions of single points.

    Returns:
        a number >= 0.

    Raises:
        ValueError: the network has no such layer.

    Example:
        >>> network = torch.nn.Conv2d(1, 1, 1)
        >>> network.weight.data.fill_(2.0)
        tensor([[[[2.]]]])
        >>> orthogonal_conv(network)  # (4 - 1)²
        tensor(9., grad_fn=<SumBackward0>)
    """
    terms = []
    for layer in network.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            weight = _dilated(layer.weight, layer.dilation)
            terms.append(kernel_orthogonality(weight, stride=layer.stride, groups=layer.groups))
        elif linear and isinstance(layer, nn.Linear):
            terms.append(kernel_orthogonality(layer.weight[..., None], stride=(1,)))
    if not terms:
        raise ValueError(
            f"{type(network).__name__} has no convolution, so nothing could be made orthogonal. Set linear=True for "
            "linear layers, or leave this term out."
        )
    return torch.stack(terms).sum()


def _dilated(weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """The weight with the zeros between its entries that a dilation stands for."""
    if all(step == 1 for step in dilation):
        return weight
    sizes = [step * (size - 1) + 1 for size, step in zip(weight.shape[2:], dilation)]
    wide = weight.new_zeros(*weight.shape[:2], *sizes)
    places = (slice(None), slice(None), *(slice(None, None, step) for step in dilation))
    wide[places] = weight
    return wide


class OrthogonalConv(Regularizer):
    r"""Keeps convolutions close to isometries, so that they neither blow up nor blur what passes through them.

    The term is that of :func:`orthogonal_conv`, a sum over the layers. Its factor is the callback's ``strength``, with
    which accuracy is traded for orthogonality. The papers tune it for each network, so choose one.

    Args:
        linear: whether linear layers count too, the head among them.

    When to use: for robustness to small changes of the inputs, or for gradients that keep their size in deep networks.
    Cost: each layer is convolved with itself once in each step, whatever the batch: about as much as a forward pass of
    :math:`(2 \lfloor (k - 1) / S \rfloor + 1)^2` points with M images.
    Interactions: leave out weight decay on these layers, which pulls against it. BatchNorm behind a layer undoes the
    scale that the term sets. Transposed convolutions do not count.

    Example:
        >>> OrthogonalConv()(torch.nn.Conv2d(1, 1, 1)).shape
        torch.Size([])

    Paper: Achour et al., Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks, JMLR 2022,
    https://arxiv.org/abs/2108.05623; the term is that of Wang et al., Orthogonal Convolutional Neural Networks, CVPR
    2020, https://arxiv.org/abs/1911.12207.

    Differs from the papers: the code of Wang et al. adds up norms, this term adds up their squares. With zeros as
    padding, no convolution of several points is an exact isometry at the borders. Not checked at the source: groups,
    dilations and linear layers, which we treat as the linear maps that they are.
    """

    function = staticmethod(orthogonal_conv)
    family = "robustness"
    example: ClassVar[dict[str, Any]] = {"linear": True}
    coupled = "it is one number for the network, whatever the batch"

    def __init__(self, *, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, network: nn.Module) -> Tensor:
        """The network -> a number."""
        return orthogonal_conv(network, linear=self.linear)
