"""Adaptation of BatchNorm's statistics."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.adaptation._norms import check_count
from lightning_objectives.kinds import Adapter


def mixed_statistics(
    inputs: Tensor, mean: Tensor | None, var: Tensor | None, *, prior_strength: float = 16.0
) -> tuple[Tensor, Tensor]:
    r"""Mix the statistics of the training with those of a test batch, for one BatchNorm layer.

    .. math::
        \mu = \frac{N}{N + n} \mu_s + \frac{n}{N + n} \mu_t, \qquad
        \sigma^2 = \frac{N}{N + n} \sigma_s^2 + \frac{n}{N + n} \sigma_t^2

    with :math:`\mu_s, \sigma_s^2` the running statistics, :math:`\mu_t, \sigma_t^2` those of the batch over all
    positions, and n the number of samples in the batch.

    Args:
        inputs: (N, C, ...) inputs of the layer; computed in float32 or better.
        mean: (C,) running mean; None if there is none, which only ``prior_strength=0`` allows.
        var: (C,) running variance, or None.
        prior_strength: N, how many samples the training counts as, :math:`\ge 0`. 0 takes the batch alone.

    Returns:
        the mean and the variance, (C,) each.

    Raises:
        ValueError: a negative ``prior_strength``, shapes that do not fit, fewer than two values for each channel, or a
            layer without running statistics.

    Example:
        >>> inputs = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        >>> mixed_statistics(inputs, torch.zeros(1), torch.ones(1), prior_strength=4.0)  # half of each
        (tensor([1.5000]), tensor([2.8333]))

    Paper: Schneider et al., Improving robustness against common corruptions by covariate shift adaptation, NeurIPS
    2020, section 3, https://arxiv.org/abs/2006.16971. As in its code, the variance of the batch is the unbiased one.
    """
    if not prior_strength >= 0:
        raise ValueError(f"prior_strength={prior_strength} must be >= 0; inf keeps the statistics of the training.")
    if inputs.dim() < 2:
        raise ValueError(
            f"inputs of the shape {tuple(inputs.shape)} must be (N, C, ...), as those of a BatchNorm layer."
        )
    check_count(inputs)
    share = 1.0 if prior_strength == math.inf else prior_strength / (prior_strength + len(inputs))
    if mean is None or var is None:
        if share:
            raise ValueError(
                f"prior_strength={prior_strength} mixes in the running statistics of the training, but a BatchNorm "
                "layer has none (track_running_stats=False). Set prior_strength=0."
            )
        mean = var = inputs.new_zeros(inputs.shape[1])
    for name, source in (("mean", mean), ("var", var)):
        if source.shape != inputs.shape[1:2]:
            raise ValueError(
                f"{name} of the shape {tuple(source.shape)} must have the shape ({inputs.shape[1]},) for inputs of the "
                f"shape {tuple(inputs.shape)}: one number for each channel."
            )
    wide = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
    batch_mean, batch_var = wide.new_zeros(len(mean)), wide.new_zeros(len(mean))
    # With momentum 1 it writes the statistics of the batch there, in a quarter of the time of torch.var_mean.
    F.batch_norm(wide, batch_mean, batch_var, training=True, momentum=1.0)
    return (
        (share * mean + (1 - share) * batch_mean).to(mean.dtype),
        (share * var + (1 - share) * batch_var).to(var.dtype),
    )


class BatchNormAdaptation(Adapter):
    r"""Corrects a shift of the test data in the first two moments, by normalizing with the statistics of the batch.

    BatchNorm layers normalize with :func:`mixed_statistics`, which mix their running statistics with those of each test
    batch. No weight changes, and no batch depends on the others.

    Args:
        prior_strength: N, how many samples the statistics of the training count as, :math:`\ge 0`. At 0 the batch alone
            counts; at ``inf`` the network is the plain one.

    Raises:
        ValueError: a negative ``prior_strength``; a batch with fewer than two values for each channel; a layer without
            running statistics, unless ``prior_strength`` is 0.

    When to use: if the test data are shifted and come in batches of several classes. The smaller the batch, the higher
    the ``prior_strength`` should be. The paper tunes it to the size of the batch and has no default: 16 is ours.
    Cost: one pass over the inputs of each BatchNorm layer.
    Interactions: the predictions for a sample depend on the other samples in its batch.

    Example:
        >>> BatchNormAdaptation(prior_strength=float("inf")).active(step=0)
        False

    Paper: see :func:`mixed_statistics`. With ``prior_strength=0`` also Nado et al., Evaluating Prediction-Time Batch
    Normalization for Robustness under Covariate Shift, 2020, https://arxiv.org/abs/2006.10963.
    """

    exemplar = True
    function = staticmethod(mixed_statistics)

    def __init__(self, *, prior_strength: float = 16.0) -> None:
        if not prior_strength >= 0:
            raise ValueError(f"prior_strength={prior_strength} must be >= 0; inf keeps the statistics of the training.")
        self.prior_strength = prior_strength

    def active(self, *, step: int) -> bool:
        """Return False at an infinite ``prior_strength``."""
        return self.prior_strength < math.inf

    def statistics(self, inputs: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mixture."""
        return mixed_statistics(inputs, mean, var, prior_strength=self.prior_strength)
