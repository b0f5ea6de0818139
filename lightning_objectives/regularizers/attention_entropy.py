"""Attention entropy maximization: attention looks at many instances of a bag."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer


def attention_concentration(hidden: Sequence[Tensor]) -> Tensor:
    r"""Compute how concentrated attention is: the negative entropy of its weights.

    .. math::
        \frac1H \sum_h \sum_i p_{hi} \log p_{hi}, \qquad p_h = \operatorname{softmax}(a_h)

    with :math:`a_{hi}` the attention logit of instance i in head h. Several layers add up.

    Args:
        hidden: attention logits (N, heads, instances), one tensor for each layer, in any float type; computed in
            float32 or better. An instance with the logit :math:`-\infty` counts as padding.

    Returns:
        (N,) terms, from minus the logarithm of the number of instances for equal weights to 0 for one instance alone.

    Raises:
        ValueError: no layer, or one without a dimension of instances.

    Example:
        >>> attention_concentration([torch.zeros(1, 1, 4), torch.tensor([[[9.0, -torch.inf]]])])  # -log 4, and 0
        tensor([-1.3863])
    """
    if not hidden:
        raise ValueError("There is no layer, but one or more must return attention logits. Name them by layers=.")
    terms = []
    for number, logits in enumerate(hidden):
        if logits.dim() < 3:
            raise ValueError(
                f"The layer {number} has the shape {tuple(logits.shape)}, but attention logits must be (N, heads, "
                "instances). Let the network take a batch of bags, and name the layer that returns the logits."
            )
        log_p = logits.flatten(2).to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(2)
        # 0 * -inf is NaN, so the logarithm of a padded instance must be replaced.
        terms.append((log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(2).mean(1))
    return torch.stack(terms).sum(0)


class AttentionEntropy(Regularizer):
    r"""Keeps attention over the instances of a bag from resting on a few of them, where a network overfits.

    The terms are those of :func:`attention_concentration`. The callback multiplies them by 0.1 if you give no
    ``strength``, as the authors' code does.

    When to use: with a network that pools a bag of instances by attention, as for images of whole slides:
    ``AddRegularizer(AttentionEntropy(), layers="attention.2")``. The layer must return the logits before their softmax:
    (N, instances, heads) from a linear layer.
    Cost: the attention logits in memory.
    Interactions: the logged term is negative. If your code masks the padding after the layer, the padding counts as
    instances here; mask inside of the layer, by a logit of minus infinity. Attention between all pairs of tokens is
    another thing: its heads would be one distribution over all pairs.

    Example:
        >>> AttentionEntropy()([torch.zeros(2, 1, 2)])
        tensor([-0.6931, -0.6931])

    Paper: Zhang et al., AEM: Attention Entropy Maximization for Multiple Instance Learning based Whole Slide Image
    Classification, 2024, https://arxiv.org/abs/2406.15303.
    """

    function = staticmethod(attention_concentration)
    family = "overfitting"
    default_strength = 0.1

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """(N, heads, instances) attention logits of each layer -> (N,) terms."""
        return attention_concentration(hidden)
