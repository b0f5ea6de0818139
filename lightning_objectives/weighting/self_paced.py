"""Self-paced learning."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes

Form = Literal["hard", "linear"]


def self_paced_weights(
    losses: Tensor, epoch: int | Tensor, *, threshold: float, growth: float = 1.3, form: Form = "hard"
) -> Tensor:
    r"""Compute weights that leave out samples whose loss is above a threshold, which grows from epoch to epoch.

    .. math::
        v_i^{\text{hard}} = [\ell_i < \lambda_t], \qquad
        v_i^{\text{linear}} = \max\left(0, 1 - \frac{\ell_i}{\lambda_t}\right), \qquad \lambda_t = \lambda \mu^t

    They minimize :math:`\sum_i v_i \ell_i - \lambda_t \sum_i v_i`, and with
    :math:`\frac{\lambda_t}{2} \sum_i (v_i^2 - 2 v_i)` in place of the second part.

    Args:
        losses: (N,).
        epoch: the number of completed epochs, :math:`t`.
        threshold: :math:`\lambda > 0` in the first epoch.
        growth: :math:`\mu \ge 1`.
        form: ``hard`` or ``linear``.

    Returns:
        (N,) weights in [0, 1], float32 at least, without gradient. Their mean is not 1. A loss that is not finite has
        the weight 0.

    Raises:
        ValueError: losses of another shape, or a setting outside its range.

    Example:
        >>> self_paced_weights(torch.tensor([0.5, 2.0, 1.0, 4.0]), 0, threshold=2.5, form="linear")
        tensor([0.8000, 0.2000, 0.6000, 0.0000])

    Paper: Kumar et al., Self-Paced Learning for Latent Variable Models, NeurIPS 2010,
    https://papers.nips.cc/paper/3923-self-paced-learning-for-latent-variable-models; the linear form is that of Jiang
    et al., Easy Samples First: Self-paced Reranking for Zero-Example Multimedia Search, ACM MM 2014.

    Differs from the paper: the weights follow the network's losses in each step, where the paper trains to the end
    between two updates of the weights. Not checked at the source: the growth of 1.3 in each round.
    """
    _check(threshold, growth, form)
    check_shapes(losses=losses)
    losses = losses.detach().to(torch.promote_types(losses.dtype, torch.float32))
    limit = threshold * growth**epoch
    weights = (losses < limit).to(losses.dtype) if form == "hard" else (1 - losses / limit).clamp(0, 1)
    return torch.where(losses.isfinite(), weights, 0.0)


def _check(threshold: float, growth: float, form: Form) -> None:
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold={threshold} must be > 0 and finite: a loss that about half of the samples have.")
    if not 1 <= growth < float("inf"):
        raise ValueError(f"growth={growth} must be >= 1 and finite; 1 keeps the threshold.")
    if form not in ("hard", "linear"):
        raise ValueError(f"form={form!r} must be 'hard' or 'linear'.")


class SelfPaced(Weighting):
    r"""Trains on easy samples first: those with a loss below a threshold, which grows until all take part.

    The weights are those of :func:`self_paced_weights`.

    Args:
        threshold: :math:`\lambda`, the loss above which samples are left out in the first epoch. Look at the losses of
            your data at the start: about half of them should be lower.
        growth: :math:`\mu`, the factor of the threshold after each epoch.
        form: ``hard`` takes or leaves a sample, ``linear`` weights it by its distance to the threshold.

    Raises:
        ValueError: a setting outside its range.

    When to use: with noisy labels or samples of very different difficulty, if the order in which they are learned
    matters. Stop the growth by stopping the training: in the end all samples take part, wrong labels too.
    Cost: one all-gather of the losses.
    Interactions: the mean of the weights is not 1, so steps are small as long as few samples take part. With a
    threshold below all losses nothing is learned at all. The loss that the model logs is the weighted one; the
    unweighted loss is logged beside it.

    Example:
        >>> SelfPaced(threshold=2.5)(torch.tensor([0.5, 2.0, 4.0]), 0)
        tensor([1., 1., 0.])
    """

    function = staticmethod(self_paced_weights)
    family = "label noise"
    example: ClassVar[dict[str, Any]] = {"threshold": 1.0, "form": "linear"}
    unkept_laws: ClassVar[dict[str, Any]] = {
        "equal_samples_weigh_the_same": "equal samples have the same weight, which their loss decides",
        "one_weight_a_sample_and_their_mean_is_one": "a batch of hard samples counts less, or not at all",
    }

    def __init__(self, *, threshold: float, growth: float = 1.3, form: Form = "hard") -> None:
        super().__init__()
        _check(threshold, growth, form)
        self.threshold = threshold
        self.growth = growth
        self.form: Form = form

    def forward(self, losses: Tensor, epoch: int | Tensor) -> Tensor:
        """(N,) losses -> (N,) weights."""
        return self_paced_weights(losses, epoch, threshold=self.threshold, growth=self.growth, form=self.form)
