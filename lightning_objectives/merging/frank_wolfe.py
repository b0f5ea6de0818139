"""Frank-Wolfe merging: goes step by step from a mean towards the network that a loss asks for most."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_steps

_EXACT = 1e-6
"""The gap, in parts of the largest slope, below which no file is better than the merge."""


def frank_wolfe_coefficients(
    evaluate: Callable[[Tensor], Tensor], steps: Sequence[int], *, iterations: int = 10, step_size: float = 1.0
) -> Tensor:
    r"""Find the shares of a mean of files that makes a loss small, by steps towards one file each.

    From the plain mean, in each iteration t = 0, 1, ... the file whose direction lowers the loss most is mixed in:

    .. math::
        v = \arg\min_k \langle \nabla L(\theta_t), \theta_k \rangle, \qquad
        \theta_{t+1} = \theta_t + \gamma_t (\theta_v - \theta_t), \qquad \gamma_t = \eta \frac{2}{t + 2}

    It ends before if :math:`\langle \nabla L(\theta_t), \theta_t - \theta_v \rangle`, the gap, is 0: then no file
    lowers the loss. For a convex loss the gap is at least what the loss can still fall within the files' hull.

    Args:
        evaluate: gives the slopes of the loss at the merge by (K,) shares, which are
            :math:`\langle \nabla L, \theta_k \rangle` for each of the K files.
        steps: K increasing numbers; only their number counts.
        iterations: how many steps there are at most.
        step_size: :math:`\eta` in (0, 1]. With 1 the first step goes all the way to one file, and the start does not
            matter.

    Returns:
        (K,) float64 shares >= 0 with sum 1.

    Raises:
        ValueError: a slope is not finite, or a setting is out of range.

    Example:
        >>> values = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
        >>> slopes = lambda shares: (shares @ values - 0.5) * values  # of (value - 1/2)² / 2
        >>> shares = frank_wolfe_coefficients(slopes, [0, 1, 2], iterations=200)
        >>> round(float(shares @ values), 1)
        0.5

    Paper: Chen et al., FW-Merging: Scaling Model Merging with Frank-Wolfe Optimization, ICCV 2025,
    https://arxiv.org/abs/2503.12649; checked against the authors' code.

    Differs from the paper's code: the code adds up the cosines of gradient and weights over the tensors in place of the
    inner product, so that small tensors count as much as large ones and the gap means nothing. It begins with a merge
    by task arithmetic or TIES, and can choose a file for each tensor. It does not end before the last iteration. Not
    checked at the source: the paper's text; the number of iterations is our own.
    """
    _check(iterations, step_size)
    count = len(check_steps(steps))
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    for iteration in range(iterations if count > 1 else 0):
        found = evaluate(shares).double()
        if found.shape != shares.shape or not found.isfinite().all():
            raise ValueError(
                f"The slopes {found.tolist()} at the shares {shares.tolist()} must be {count} finite numbers: use "
                "fewer or other files, or a loss that is finite there."
            )
        nearest = int(found.argmin())
        gap = float(shares @ found - found[nearest])
        if gap <= _EXACT * float(found.abs().max()):
            break
        move = step_size * 2 / (iteration + 2)
        shares = (1 - move) * shares
        shares[nearest] += move
    return shares / shares.sum()


def _check(iterations: int, step_size: float) -> None:
    if not iterations >= 1:
        raise ValueError(f"iterations={iterations} must be >= 1: each takes one step towards a file.")
    if not (0 < step_size <= 1 and math.isfinite(step_size)):
        raise ValueError(f"step_size={step_size} must be in (0, 1]: a longer first step would leave the files' hull.")


class FrankWolfeMerging(Merge):
    """Picks those of many networks that help a loss, and averages them; the others get no share.

    The shares are those of :func:`frank_wolfe_coefficients`.

    Args:
        iterations: how many steps there are at most; no more files than this get a share, beside what is left of the
            plain mean if ``step_size`` is below 1.
        step_size: the factor of all steps, in (0, 1].

    Raises:
        ValueError: a setting is out of range.

    When to use: if you have many fine-tunings of one network, and perhaps only some of them help, and a few batches
    with targets of what the merge must do. :class:`GreedySoup` needs scores alone, but of 2 K - 1 merges.
    Cost: for each iteration one merge in memory, one gradient, and one pass over the files for the inner products.
    Interactions: give ``gradient`` to :func:`merge_checkpoints`: a function that takes a state dict and returns the
    gradient of the loss by name, such as
    ``{name: p.grad for name, p in network.named_parameters()}`` after ``backward()``. What it leaves out, such as
    buffers, does not count. The base may be one of the files. Re-estimate the statistics of BatchNorm.

    Example:
        >>> FrankWolfeMerging(iterations=1).search(lambda shares: torch.tensor([0.5, -1.0, 0.0]), [0, 1, 2])
        tensor([0., 1., 0.], dtype=torch.float64)
    """

    function = staticmethod(frank_wolfe_coefficients)
    callback = ""  # A training that has ended has no batches left to take gradients of.
    asks = ("gradient",)

    def __init__(self, *, iterations: int = 10, step_size: float = 1.0) -> None:
        _check(iterations, step_size)
        self.iterations = iterations
        self.step_size = step_size

    def search(self, evaluate: Callable[[Tensor], Tensor], steps: Sequence[int]) -> Tensor:
        """The (K,) shares of K files, by the slopes of the loss along each."""
        return frank_wolfe_coefficients(evaluate, steps, iterations=self.iterations, step_size=self.step_size)
