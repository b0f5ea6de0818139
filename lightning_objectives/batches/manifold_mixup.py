"""Manifold mixup."""

import torch

from lightning_objectives.batches.mixup import Mixup


class ManifoldMixup(Mixup):
    r"""Smooths the boundaries between classes: mixes the inputs of a batch, or what a hidden layer returns for them.

    Each batch draws one of the layers that you name, or the inputs, all with the same probability. There the rows are
    mixed as :class:`Mixup` mixes inputs, by one :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`, and the labels in
    the same shares.

    Args:
        alpha: :math:`\alpha > 0`; small values mix little. The authors' default is 2.
        prob: the probability that a batch is mixed.
        mix_inputs: whether the inputs are one of the places. Set it to False for inputs that cannot be mixed, such as
            tokens.

    Raises:
        ValueError: a setting outside its range; in the training, no ``layers=``.

    When to use: in long trainings of classifiers, in place of :class:`Mixup`. Name the first and the second block, as
    the authors do: ``TransformBatch(ManifoldMixup(), layers=["model.layer1", "model.layer2"])``.
    Cost: one pass over the inputs or over the output of the layer.
    Interactions: BatchNorm before the layer sees unmixed rows. Each step must call the layers once, and their first
    dimension must count the samples. A teacher or a reference would not see the mixture, and is refused. The criterion
    compares each sample with two labels, as with :class:`Mixup`.

    Example:
        >>> method, generator = ManifoldMixup(), torch.Generator().manual_seed(0)
        >>> [method.draw_layer(2, generator) for _ in range(8)]  # of two layers, and the inputs
        [2, 0, 2, 0, 1, 0, 1, 1]
        >>> hidden, index, weight = method(torch.rand(4, 16), generator)
        >>> hidden.shape, index.shape, weight.shape
        (torch.Size([4, 16]), torch.Size([4, 2]), torch.Size([4, 2]))

    Paper: Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States, ICML 2019,
    https://arxiv.org/abs/1806.05236.

    Differs from the authors' code: the loss is the model's own criterion. The code takes the binary cross entropy of
    the softmax and the mixed label, for each class.
    """

    def __init__(self, *, alpha: float = 2.0, prob: float = 1.0, mix_inputs: bool = True) -> None:
        super().__init__(alpha=alpha, prob=prob)
        self.mix_inputs = mix_inputs

    def draw_layer(self, layers: int, generator: torch.Generator) -> int:
        """0 for the inputs, or the number of a layer from 1."""
        return int(torch.randint(0 if self.mix_inputs else 1, layers + 1, (), generator=generator))
