"""IRMv2: an invariance penalty that small features cannot evade."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_shapes

Criterion = Literal["softmax", "squared"]


def irm_v2_penalty(
    logits: Tensor,
    features: Tensor,
    target: Tensor,
    group: Tensor,
    *,
    groups: int,
    criterion: Criterion = "softmax",
    ridge: float = 1e-4,
) -> Tensor:
    r"""Compute how much the last layer could still gain in each environment if it were fitted to it alone.

    .. math::
        \rho_e = \frac{1}{4}\, \operatorname{tr}\left(g_e^\top (G_e + \epsilon I)^{-1} g_e\right), \qquad
        g_e = \nabla_W R_e, \quad G_e = \mathbb{E}_e[\phi \phi^\top]

    with the features :math:`\phi`, to which a 1 is added for the bias, and the risk :math:`R_e` of an environment. For
    the squared loss :math:`R_e = \mathbb{E}_e \|z - y\|^2` this is :math:`R_e(W) - \min_W R_e(W)`, whatever the scale
    of the features. For cross entropy the gradient is :math:`\mathbb{E}_e[\phi (p - y)^\top]`.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        features: (N, D), the input of the last layer.
        target: (N,) int classes or (N, C) floats: class probabilities, or the numbers of a regression.
        group: (N,) int, the environment of each sample.
        groups: the number of environments, which are numbered from 0.
        criterion: ``softmax`` is cross entropy, ``squared`` the squared loss.
        ridge: :math:`\epsilon > 0`.

    Returns:
        a number >= 0, the mean over the environments that have samples in the batch.

    Raises:
        ValueError: shapes that do not fit, or a setting outside its range.

    Example:
        >>> features, target = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [2.0]])
        >>> logits = torch.zeros(2, 1)  # A constant of 1 would lower the risk from 2 to 1.
        >>> group = torch.zeros(2, dtype=torch.long)
        >>> irm_v2_penalty(logits, features, target, group, groups=1, criterion="squared", ridge=1e-6)
        tensor(1.0000)
    """
    _check(groups, criterion, ridge)
    check_shapes(logits=logits, features=features, target=target, group=group)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wanted = target if target.is_floating_point() else F.one_hot(target.long(), logits.shape[1])
    gap = 2 * (logits - wanted) if criterion == "squared" else logits.softmax(1) - wanted
    phi = F.pad(features.to(gap.dtype), [0, 1], value=1.0)
    member = F.one_hot(group.long(), groups).to(gap.dtype)
    counts = member.sum(0)
    share = member / counts.clamp_min(1)
    gradient = torch.einsum("ne,nd,nc->edc", share, phi, gap)
    gram = torch.einsum("ne,nd,nf->edf", share, phi, phi)
    ridged = gram + ridge * torch.eye(phi.shape[1], dtype=gram.dtype, device=gram.device)
    # The quick form of solve, which does not wait to look for errors: with the ridge there are none.
    penalties: Tensor = (gradient * torch.linalg.solve_ex(ridged, gradient)[0]).sum((1, 2)) / 4
    return penalties.sum() / (counts > 0).sum().clamp_min(1)


def _check(groups: int, criterion: Criterion, ridge: float) -> None:
    if groups < 1:
        raise ValueError(f"groups={groups} must be at least 1: the number of environments.")
    if criterion not in ("softmax", "squared"):
        raise ValueError(f"criterion={criterion!r} must be 'softmax' or 'squared'.")
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge={ridge} must be > 0 and finite, or the system of few samples has no solution.")


class IRMv2Penalty(Regularizer):
    r"""Finds features for which one last layer is the best in every environment, so that it is in new ones too.

    The term is that of :func:`irm_v2_penalty`. Its factor is the callback's ``strength``, which needs tuning; raise it
    after some epochs without it (``start_epoch``).

    Args:
        groups: the number of environments, which are numbered from 0.
        criterion: ``softmax`` for classes, ``squared`` for a regression with the squared loss.
        ridge: :math:`\epsilon`, relative to features with numbers near 1.

    Raises:
        ValueError: a setting outside its range.

    When to use: if the training data come from several known environments (hospitals, cameras, years), and the network
    will be used in others.
    Cost: for each environment a system of D + 1 equations in each step.
    Interactions: each environment needs more samples in a batch than there are features. With fewer, every residual
    could be fitted, and the penalty is a second loss. It counts the samples of one process and one micro-batch.

    Example:
        >>> method = IRMv2Penalty(groups=2)
        >>> method(torch.zeros(4, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])

    Paper: Khezeli et al., On Invariance Penalties for Risk Minimization, 2021, https://arxiv.org/abs/2106.09777.

    Differs from the paper: the ridge. Its factor that follows the smallest eigenvalue of the features is not here. Not
    checked at the source: the form for cross entropy, in which all classes share the matrix of the features, and the
    mean over the environments.
    """

    function = staticmethod(irm_v2_penalty)
    family = "group shift"
    example: ClassVar[dict[str, Any]] = {"groups": 2}
    coupled = "the penalty is that of all samples of an environment"
    by_process = "each process compares its own samples"

    def __init__(self, *, groups: int, criterion: Criterion = "softmax", ridge: float = 1e-4) -> None:
        super().__init__()
        _check(groups, criterion, ridge)
        self.groups = groups
        self.criterion: Criterion = criterion
        self.ridge = ridge

    def forward(self, logits: Tensor, features: Tensor, target: Tensor, group: Tensor) -> Tensor:
        """(N, C) logits, (N, D) features, targets and (N,) groups -> a number."""
        return irm_v2_penalty(
            logits, features, target, group, groups=self.groups, criterion=self.criterion, ridge=self.ridge
        )
