"""Layers that are frozen one after the other, from the input on."""

from lightning_objectives.kinds import LayerPlace, Surgery


class LayerFreezing(Surgery):
    r"""Saves the backward pass of early layers in the second half of a training, by freezing them one by one.

    Early layers settle first. Of the L layers that you name, in their order, the first

    .. math::
        \left\lfloor v \, \frac{t - s}{1 - s} \, L \right\rfloor

    are frozen when the part t of the training is done, and none before s. A frozen layer keeps its weights to the bit.

    Args:
        start: :math:`s`, the part of the training after which the first layer may freeze, in [0, 1).
        level: :math:`v`, the part of the layers that is frozen at the end, in [0, 1]; at 0 nothing is frozen.

    Raises:
        ValueError: a setting outside its range; in the training, a training without an end.

    When to use: to fine-tune for less, where the backward pass of the early layers takes much of the time. Do not name
    the head. composer begins at 0.5 and freezes all but the last layer.
    Cost: none; with one process the backward pass ends where the frozen layers begin, if nothing before them is
    trained. With several processes no time is saved.
    Interactions: averages, checkpoints and a resumed training see nothing of it, because which layers are frozen
    depends on the progress alone. Optimizers keep their state of frozen weights.

    Example:
        >>> freezing = LayerFreezing(start=0.5, level=0.8)
        >>> sum(freezing.frozen(LayerPlace(number, 10, part_done=lambda: 0.75)) for number in range(10))
        4

    Paper: Raghu et al., SVCCA, NeurIPS 2017, on freeze training, https://arxiv.org/abs/1706.05806; the schedule is that
    of composer's layer freezing, https://docs.mosaicml.com/projects/composer.

    Differs from composer: it counts every layer of the network but the last, and freezes at the ends of epochs. Here
    you name the layers, and the number is that of each step.
    """

    example = {"start": 0.0}  # noqa: RUF012  # a ClassVar of the base

    def __init__(self, *, start: float = 0.5, level: float = 1.0) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start={start} must be in [0, 1): the part of the training after which layers freeze.")
        if not 0 <= level <= 1:
            raise ValueError(f"level={level} must be in [0, 1]: the part of the layers that is frozen at the end.")
        self.start = start
        self.level = level

    def active(self, *, step: int) -> bool:
        """Return False at ``level=0``."""
        return self.level > 0

    def frozen(self, place: LayerPlace) -> bool:
        """Whether the layer is among the first that are frozen by now."""
        part = (place.part_done() - self.start) / (1 - self.start)
        return place.number < int(self.level * part * place.count + 1e-9)
