"""What surveys of a network ask of it."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_rows_apart(network: nn.Module) -> None:
    """Refuse a network in which what is measured of a row depends on the other rows, or on a draw.

    Raises:
        ValueError: with the way out.

    >>> check_rows_apart(nn.Linear(1, 1))
    Traceback (most recent call last):
        ...
    ValueError: Linear is in training mode (itself), ...
    """
    training = next((name or "itself" for name, m in network.named_modules() if m.training), None)
    if training is not None:
        raise ValueError(
            f"{type(network).__name__} is in training mode ({training}), in which dropout draws and BatchNorm mixes "
            "the rows, so no row can be measured by itself. Call network.eval() first."
        )
    mixing = [n for n, m in network.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is None]
    if mixing:
        raise ValueError(
            f"{type(network).__name__} has a BatchNorm without running statistics ({mixing[0]!r}), which mixes the "
            "rows also in evaluation mode, so no row can be measured by itself. Use "
            "track_running_stats=True, or GroupNorm."
        )
