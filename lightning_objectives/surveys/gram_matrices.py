"""The Gram matrices of the inputs of a network's linear layers."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_objectives.kinds import Survey
from lightning_objectives.shapes import check_shapes
from lightning_objectives.surveys._networks import check_rows_apart


def gram_sums(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    r"""Compute the sums of the products of each two inputs of each linear layer, and of each input, over all rows.

    .. math::
        \sum_r \tilde x_r \tilde x_r^\top, \qquad \tilde x = (x, 1)

    The last entry is therefore the number of rows. All dimensions of a layer's input but the last count as rows: the
    tokens of a text, the positions of an image.

    Args:
        network: in evaluation mode; it takes (N, ...) inputs. What it returns is not used.
        inputs: (N, ...).

    Returns:
        (in + 1, in + 1) for each ``torch.nn.Linear``, under the name of its weight (tied ones together, under each of
        their names), in float32 or wider; zeros for a layer that is not called.

    Raises:
        ValueError: inputs without rows; a network in training mode, or one that mixes rows.

    Example:
        >>> gram_sums(nn.Linear(2, 1).eval(), torch.tensor([[1.0, 0.0], [2.0, 3.0]]))["weight"]
        tensor([[5., 6., 3.],
                [6., 9., 3.],
                [3., 3., 2.]])

    Paper: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023, section 3,
    https://arxiv.org/abs/2212.09849; checked against the authors' code.

    Differs from the paper's code: the code also takes the transposed layers of GPT-2.
    """
    check_shapes(inputs=inputs)
    check_rows_apart(network)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    sums: dict[int, Tensor] = {}
    for layer in layers.values():
        side = layer.in_features + 1
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        sums[id(layer.weight)] = layer.weight.new_zeros((side, side), dtype=wide)

    def add(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        total = sums[id(layer.weight)]
        x = args[0] if args else kwargs["input"]
        rows = F.pad(x.detach().reshape(-1, x.shape[-1]).to(total.dtype), (0, 1), value=1.0)
        with torch.autocast(rows.device.type, enabled=False):
            total.addmm_(rows.T, rows)

    handles = [layer.register_forward_pre_hook(add, with_kwargs=True) for layer in layers.values()]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    names = network.named_parameters(remove_duplicate=False)
    return {name: sums[id(p)] for name, p in names if id(p) in sums}


class GramMatrices(Survey):
    r"""Measures which inputs of each linear layer come together, for merges that keep what the layers give.

    The matrices are the means over the rows of :func:`gram_sums`, :math:`X^\top X / n`.

    When to use: after a training, with ``path="importance.safetensors"``, for ``RegMean``, which takes the file as its
    ``importance``. The paper's code takes 1000 batches; see ``max_batches``.
    Cost: one forward pass, and for each row of a layer's input the square of its width. The sums are as large as the
    square of the inputs of each layer: 64 MiB for 4096, in float32, and twice that while they are added up.
    Interactions: the network is in evaluation mode. Padded positions count like others. Layers that the network does
    not call as modules have no matrix, and you are warned: ``torch.nn.MultiheadAttention`` uses the weights of its
    layers itself.

    Example:
        >>> survey, network = GramMatrices(), nn.Linear(2, 1).eval()
        >>> survey.result(survey(network, torch.tensor([[1.0, 0.0], [2.0, 3.0]])), rows=2)["weight"]
        tensor([[2.5000, 3.0000],
                [3.0000, 4.5000]])

    Paper: see :func:`gram_sums`.
    """

    function = staticmethod(gram_sums)
    by_parameter = True

    def forward(self, network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        """A network and its (N, ...) inputs -> sums by the names of the weights."""
        return gram_sums(network, inputs)

    def result(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The means over the rows of each layer, in float32, of the layers that were called.

        Raises:
            ValueError: no linear layer was called.
        """
        unseen = [name for name, total in sums.items() if total[-1, -1] == 0]
        if len(unseen) == len(sums):
            raise ValueError(
                f"No row went through a torch.nn.Linear of the network ({unseen or 'it has none'}), so there is no "
                "Gram matrix of any layer: survey the module that calls them."
            )
        if unseen:
            warnings.warn(
                f"The network does not call {unseen} as modules, so they have no Gram matrix: RegMean takes the plain "
                "mean of their weights.",
                stacklevel=2,
            )
        return {n: (total[:-1, :-1] / total[-1, -1]).float() for n, total in sums.items() if n not in unseen}
