"""Doubly robust reweighting: the weights of a KL-regularized worst case over the samples."""

import math

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes


class DoublyRobustReweighting(Weighting):
    r"""Trains for the worst mixture of the samples that is not far from the data: high losses weigh exponentially more.

    The training minimizes the objective below, by a running mean :math:`u` of its inner expectation:

    .. math::
        \max_p \sum_i p_i \ell_i - \lambda \operatorname{KL}(p \,\|\, \tfrac1n)
        = \lambda \log \frac1n \sum_i e^{\ell_i / \lambda}, \qquad
        w_i = \frac{e^{\ell_i / \lambda}}{u}, \quad
        u \leftarrow (1 - \gamma) u + \gamma \frac1N \sum_{i=1}^N e^{\ell_i / \lambda}

    The first batch sets :math:`u` to its own mean. The running mean is saved with the callback's state.

    Args:
        temperature: :math:`\lambda > 0`, in units of the loss. The lower, the more the largest losses count; infinity
            gives weights of 1.
        rate: :math:`\gamma \in (0, 1]`; 1 compares the samples of a batch with each other alone, so that the mean of
            their weights is 1.

    Returns:
        ``forward(losses)`` gives (N,) weights in :math:`[0, N / \gamma]`, float32 at least, without gradient. Their
        mean is not 1: a batch of high losses counts more. A non-finite loss gets the weight 0, and does not count in
        :math:`u`. If no loss is finite, every weight is 1.

    Raises:
        ValueError: a setting outside its range; in the training, losses of another shape than (N,).

    When to use: if the network must be good on its weakest samples or classes, and no groups are known. The paper uses
    it for adversarial training: attack the inputs in your ``training_step``, so that the losses are those of the
    attacked inputs. Then the training is robust twice, to attacks and to the mixture of the samples.
    Cost: one all-gather of the losses.
    Interactions: mislabelled samples have high losses and get high weights. With ``rate`` below 1 the gradient norm
    follows the losses of the batch, so you may need another clipping threshold.

    Example:
        >>> method = DoublyRobustReweighting(rate=0.5)
        >>> method(torch.tensor([1.0, 3.0]).log())  # u = 2
        tensor([0.5000, 1.5000])
        >>> method(torch.tensor([4.0, 8.0]).log())  # u = (2 + 6) / 2
        tensor([1., 2.])

    Paper: Sow et al., Doubly Robust Instance-Reweighted Adversarial Training, ICLR 2024,
    https://openreview.net/forum?id=OF5x1dzWSS. Not checked at the source: the equations, which follow from the
    objective that its abstract names, and the paper's temperature and rate.

    Differs from the paper: the attack is that of your step. The paper's algorithm also differentiates through the
    attack.
    """

    family = "worst cases"
    log_mean: Tensor

    def __init__(self, *, temperature: float = 1.0, rate: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be > 0; infinity gives all samples the same weight.")
        if not 0 < rate <= 1:
            raise ValueError(f"rate={rate} must be in (0, 1]; 1 uses the mean of each batch alone.")
        self.temperature = temperature
        self.rate = rate
        self.register_buffer("log_mean", torch.tensor(-torch.inf))  # of no batch yet

    def forward(self, losses: Tensor) -> Tensor:
        """(N,) losses -> (N,) weights; updates the running mean."""
        check_shapes(losses=losses)
        scaled = losses.detach().to(torch.promote_types(losses.dtype, torch.float32)) / self.temperature
        finite = losses.isfinite()
        scaled = torch.where(finite, scaled, -torch.inf)
        own = scaled.logsumexp(0) - finite.sum().log()
        before = self.log_mean.to(scaled.dtype)
        # At rate 1 the logarithm of 1 - rate is that of 0, and nothing of the past is left.
        past = before + math.log1p(-self.rate) if self.rate < 1 else before.new_tensor(-torch.inf)
        moved = torch.where(before.isneginf(), own, torch.logaddexp(past, own + math.log(self.rate)))
        moved = torch.where(finite.any(), moved, before)
        self.log_mean = moved.to(self.log_mean.dtype)
        return torch.where(finite.any(), (scaled - moved).exp(), 1.0)
