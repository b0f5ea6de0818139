"""Stochastic depth: residual branches that are dropped at random in training."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from lightning_objectives.kinds import LayerPlace, Surgery


class StochasticDepth(Surgery):
    r"""Keeps a deep residual network from overfitting, by dropping residual branches at random in training.

    In training a branch :math:`f_l(x)` of :math:`x + f_l(x)` becomes

    .. math::
        \frac{b_l}{1 - p_l} f_l(x), \qquad b_l \sim \operatorname{Bernoulli}(1 - p_l), \qquad p_l = p \, \frac{l}{L}

    for the l-th of L layers that you name, in their order. Evaluation is that of the plain network.

    Args:
        rate: :math:`p`, the part of the rows that the last layer drops, in [0, 1]; at 0 the training is the plain one.
        part: what the layers are. A ``"branch"`` returns :math:`f_l(x)` alone: the last layer of a branch, such as the
            second BatchNorm of a ResNet's block or timm's ``drop_path``. A ``"block"`` returns :math:`x + f_l(x)`, and
            its first argument is :math:`x`: a block of a transformer.
        mode: ``"row"`` draws for each sample, ``"batch"`` once for all of them, as the paper does.
        growing: whether the rates grow with the layers; if not, all are ``rate``.
        sample_dim: the dimension of a layer's output that counts the samples; 1 for a transformer that has the sequence
            first.

    Raises:
        ValueError: a rate outside [0, 1], an unknown ``part`` or ``mode``; in the training, a layer that returns no
            tensor, an output whose ``sample_dim`` does not count the samples, or a block that changes the shape.

    When to use: to train networks of many residual blocks for long. The paper drops half of the last block's batches.
    Cost: one multiplication for each layer. The branches are computed and then dropped, so no time is saved.
    Interactions: with DDP each process draws its own. Do not name layers whose output is not added to something: the
    network would lose it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Identity()
        >>> drop = StochasticDepth(rate=1.0)
        >>> drop.call(layer, LayerPlace(number=1, count=2), layer.forward, torch.ones(1, 3))
        tensor([[0., 0., 0.]])

    Paper: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, equations 2 and 4,
    https://arxiv.org/abs/1603.09382.

    Differs from the paper: the kept branches are scaled in training, as in timm and torchvision, and not all branches
    in testing. By default the draws are for each sample. The equations' numbers were not checked at the source.
    """

    exemplar = True
    family = "overfitting"
    by_process = "each process draws for its own rows"

    def __init__(
        self,
        *,
        rate: float = 0.1,
        part: Literal["branch", "block"] = "branch",
        mode: Literal["row", "batch"] = "row",
        growing: bool = True,
        sample_dim: int = 0,
    ) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate} must be in [0, 1]; 0 drops nothing.")
        if part not in ("branch", "block"):
            raise ValueError(f"part={part!r} must be 'branch' or 'block'.")
        if mode not in ("row", "batch"):
            raise ValueError(f"mode={mode!r} must be 'row' or 'batch'.")
        if sample_dim < 0:
            raise ValueError(f"sample_dim={sample_dim} must be >= 0.")
        self.rate = rate
        self.part = part
        self.mode = mode
        self.growing = growing
        self.sample_dim = sample_dim

    def active(self, *, step: int) -> bool:
        """Return False at ``rate=0``."""
        return self.rate > 0

    def rate_of(self, place: LayerPlace) -> float:
        """The part of the rows that a layer drops.

        >>> [round(StochasticDepth(rate=0.5).rate_of(LayerPlace(number, 5)), 3) for number in range(5)]
        [0.1, 0.2, 0.3, 0.4, 0.5]
        """
        return self.rate * (place.number + 1) / place.count if self.growing else self.rate

    def call(self, layer: nn.Module, place: LayerPlace, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the layer, and drop its branch in some rows."""
        output = inner(*args, **kwargs)
        rate = self.rate_of(place)
        if rate == 0:
            return output
        first, *rest = output if isinstance(output, tuple) else (output,)
        if not isinstance(first, Tensor):
            raise ValueError(
                f"{self} drops rows of a tensor, but the layer {place.path!r} returns a {type(first).__name__}. Name a "
                "layer that returns a tensor, or a tuple that begins with one."
            )
        if self.part == "branch":
            dropped = first * self._gate(first, place, rate)
        else:
            before = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(before, Tensor) or before.shape != first.shape:
                raise ValueError(
                    f"{self}: the layer {place.path!r} changes the shape of its input, so it cannot be left out. Name "
                    "the blocks that keep the shape, or the layers at the end of the branches with part='branch'."
                )
            dropped = before + (first - before) * self._gate(first, place, rate)
        if not isinstance(output, tuple):
            return dropped
        return type(output)(dropped, *rest) if hasattr(output, "_fields") else (dropped, *rest)

    def _gate(self, output: Tensor, place: LayerPlace, rate: float) -> Tensor:
        shape = [1] * output.dim()
        if self.mode == "row":
            rows = output.shape[self.sample_dim] if self.sample_dim < output.dim() else None
            if rows is None or place.samples not in (None, rows):
                raise ValueError(
                    f"{self} draws for each of the {place.samples} samples, but dimension {self.sample_dim} of the "
                    f"output {tuple(output.shape)} of the layer {place.path!r} does not count them. Say which one does "
                    "with sample_dim=, say batch_size= to the callback, or use mode='batch'."
                )
            shape[self.sample_dim] = rows
        gate = output.new_empty(shape).bernoulli_(1 - rate)
        return gate if rate == 1 else gate / (1 - rate)
