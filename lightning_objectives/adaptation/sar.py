"""SAR: sharpness-aware and reliable entropy minimization."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives.adaptation.tent import TENT, softmax_entropy


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin={margin} must be > 0, or no row is reliable; above 1 all rows are.")


def reliable_rows(logits: Tensor, *, margin: float = 0.4) -> Tensor:
    r"""Find the rows that the network is sure enough of to learn from.

    .. math::
        H(\mathrm{softmax}(z)) < E_0, \qquad E_0 = m \log C

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        margin: :math:`m > 0`, the limit as a share of the greatest entropy that C classes can have. Above 1 it keeps
            all rows.

    Returns:
        (N,) bool; False for a row whose entropy is not a number.

    Raises:
        ValueError: logits of another shape, or of a single class; ``margin`` out of its range.

    Example:
        >>> reliable_rows(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))  # 0.191 and 0.693 against 0.4 log 2 = 0.277
        tensor([ True, False])

    Paper: Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023, equation 2,
    https://arxiv.org/abs/2302.12400.
    """
    _check_margin(margin)
    entropies = softmax_entropy(logits)
    return entropies < margin * math.log(logits.shape[1])


def _mean_entropy(logits: Tensor, rows: Tensor) -> Tensor:
    """The mean entropy of these rows; 0, with gradients of 0, of no rows."""
    return softmax_entropy(logits).where(rows, 0).sum() / rows.sum().clamp(min=1)


class SAR(TENT):
    r"""Adapts to shifted test data as :class:`TENT` does, but without its collapse to one class.

    Three things make it stable. It learns only from the :func:`reliable_rows` of a batch. It takes the gradient at the
    worst weights within a distance of :math:`\rho`, so that the weights move to where the entropy is flat:

    .. math::
        \varepsilon = \rho \, g / \lVert g \rVert_2, \qquad g = \nabla \bar H(\theta), \qquad
        v \leftarrow \mu v + \nabla \bar H(\theta + \varepsilon), \qquad \theta \leftarrow \theta - \eta v

    with :math:`\bar H` the mean entropy of the reliable rows, which must be reliable at both places for the second
    gradient. And it puts the weights and the momentum back to those of the beginning if a moving average of that mean
    entropy is less than ``recovery``, because the network then begins to give one class to everything.

    The predictions of a batch are those from before its step.

    Args:
        lr: :math:`\eta \ge 0`; at 0 nothing moves.
        momentum: :math:`\mu` of SGD, in [0, 1).
        rho: :math:`\rho \ge 0`, the length of the move in all adapted weights together; 0 is TENT on reliable rows.
        margin: the limit of :func:`reliable_rows`, > 0.
        recovery: :math:`e_0 \ge 0`, in nats, whatever the number of classes; 0 never puts the weights back.
        decay: of the moving average, in [0, 1).
        skip: modules whose scales and shifts stay, by their names in the network, with all that is in them.

    Raises:
        ValueError: a setting out of its range; a name in ``skip`` that the network does not have; a network without
            scales or shifts of normalization layers; logits that depend on none of them; a batch with fewer than two
            values for each channel of a BatchNorm layer.

    When to use: if shifted test data come in small batches, with classes that are not mixed, or with several shifts at
    once. Prefer networks with GroupNorm or LayerNorm. The defaults are the paper's for ResNet-50 with batches of 64; it
    takes ``lr=0.001`` for ViT-Base, and smaller rates for smaller batches. It leaves the last blocks alone:
    ``skip=["layer4"]`` of a ResNet, ``skip=["blocks.9", "blocks.10", "blocks.11", "norm"]`` of a ViT. With few classes
    set ``recovery`` lower: reliable rows of two classes have less than 0.277 nats, and for them 0.2 is no collapse.
    Cost: two backward passes and one more forward pass for each batch, and the memory of a training step. The state is
    three numbers for each scale and shift.
    Interactions: dropout stays off. Frozen scales and shifts move too, and are frozen again afterwards. BatchNorm
    layers in ``skip`` still normalize with the statistics of the batch.

    Example:
        >>> network = nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2))
        >>> list(SAR(skip=["1"]).adapts(network))
        ['0.weight', '0.bias']

    Paper: Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023, equations 2 to 4 and
    algorithm 1, https://arxiv.org/abs/2302.12400.

    Differs from the paper: its code keeps :math:`E_0 = 0.4 \log 1000` for any number of classes, and keeps the moving
    average when it puts the weights back, so that it does so again at each batch until the average has risen; here the
    average begins anew. A gradient that is not finite counts as zero, so that one bad batch does not spoil the weights.
    """

    # An untrained network is sure of nothing: with the paper's margin no row of the tests would be reliable.
    example: ClassVar[dict[str, Any]] = {"margin": 2.0}

    def __init__(
        self,
        *,
        lr: float = 0.00025,
        momentum: float = 0.9,
        rho: float = 0.05,
        margin: float = 0.4,
        recovery: float = 0.2,
        decay: float = 0.9,
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__(lr=lr, optimizer="sgd", momentum=momentum)
        if not 0 <= rho < float("inf"):
            raise ValueError(f"rho={rho} must be finite and >= 0; 0 takes the gradient at the weights themselves.")
        _check_margin(margin)
        if not recovery >= 0:
            raise ValueError(f"recovery={recovery} must be >= 0; 0 never puts the weights back.")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be >= 0 and < 1.")
        if isinstance(skip, str):
            raise ValueError(f"skip={skip!r} must be a list of names: skip=[{skip!r}].")
        self.rho = rho
        self.margin = margin
        self.recovery = recovery
        self.decay = decay
        self.skip = tuple(skip)

    def adapts(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The scales and shifts of the normalization layers that are not in ``skip``."""
        modules = dict(network.named_modules())
        unknown = [name for name in self.skip if name not in modules]
        if unknown:
            raise ValueError(
                f"skip names {unknown[0]!r}, which is no module of {type(network).__name__}. It has: "
                f"{', '.join(name for name in modules if name)}."
            )
        params = super().adapts(network)
        kept = {k: p for k, p in params.items() if not any(k.startswith(f"{name}.") for name in self.skip)}
        if not kept:
            raise ValueError(f"{self} skips all scales and shifts of the network: {', '.join(params)}. Skip fewer.")
        return kept

    def init(self, params: Mapping[str, nn.Parameter]) -> dict[str, Any]:
        """The weights to go back to, a momentum of zero, and an average that has not begun."""
        return {
            "source": [p.detach().clone() for p in params.values()],
            "momentum": [torch.zeros_like(p, requires_grad=False) for p in params.values()],
            "entropy": next(iter(params.values())).new_full((), math.nan, dtype=torch.float32),
        }

    def _gradients(self, value: Tensor, params: Mapping[str, nn.Parameter]) -> list[Tensor]:
        """Those of the value; all are zero if one number is not finite."""
        gradients = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        finite = [g.isfinite().all() for g in gradients if g is not None]
        if not finite:
            raise ValueError(f"{self} adapts {', '.join(params)}, but the logits depend on none of them.")
        usable = torch.stack(finite).all()
        return [torch.zeros_like(p) if g is None else g.where(usable, 0) for g, p in zip(gradients, params.values())]

    def update(
        self,
        logits: Tensor,
        features: Tensor,
        params: Mapping[str, nn.Parameter],
        state: dict[str, Any],
        *,
        again: Callable[[], tuple[Tensor, Tensor]],
    ) -> None:
        """One step down the entropy of the reliable rows, or back to the first weights."""
        weights = list(params.values())
        rows = reliable_rows(logits.detach(), margin=self.margin)
        ascent = self._gradients(_mean_entropy(logits, rows), params)
        length = torch.stack([g.float().norm() for g in ascent]).norm() + 1e-12
        before = [p.detach().clone() for p in weights]
        with torch.no_grad():
            for p, g in zip(weights, ascent):
                p.add_((self.rho / length * g).to(p.dtype))
        moved, _ = again()
        rows = rows & reliable_rows(moved.detach(), margin=self.margin)
        entropy = _mean_entropy(moved, rows)
        descent = self._gradients(entropy, params)

        average = state["entropy"]
        new = torch.where(average.isnan(), entropy.detach(), self.decay * average + (1 - self.decay) * entropy.detach())
        average = torch.where(rows.any(), new, average).to(average.dtype)
        back = average < self.recovery  # never of an average that has not begun, which is NaN
        state["entropy"] = average.where(~back, math.nan)
        with torch.no_grad():
            for p, old, source, speed, g in zip(weights, before, state["source"], state["momentum"], descent):
                speed.mul_(self.momentum).add_(g)
                p.copy_((old - self.lr * speed).where(~back, source))
                speed.mul_(~back)
