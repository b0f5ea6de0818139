"""Lightning under both of its names, ``lightning.pytorch`` and ``pytorch_lightning``; either alone will do."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any


def _installed(name: str) -> bool:
    # Looking for a submodule of what is not there raises.
    return bool(find_spec(name.partition(".")[0]) and find_spec(name))


NAMES = [name for name in ("lightning.pytorch", "pytorch_lightning") if _installed(name)]
"""The names that are installed; where both are, the first is asked for what they share."""
if not NAMES:
    raise ModuleNotFoundError("Callbacks need Lightning: pip install lightning.", name="lightning")


def part(name: str) -> Any:
    """A module of the first Lightning that is installed, such as ``"cli"``; ``""`` is the whole."""
    return import_module(f"{NAMES[0]}.{name}".rstrip("."))


VERSION: str = part("").__version__

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.utilities import seed, signature_utils

    # By assignment: the documentation follows imports, and stops before other people's packages.
    Callback = pl.Callback
    LightningDataModule = pl.LightningDataModule
    rank_zero_info, rank_zero_warn = pl.utilities.rank_zero_info, pl.utilities.rank_zero_warn
    isolate_rng = seed.isolate_rng
    is_param_in_hook_signature = signature_utils.is_param_in_hook_signature
else:
    # A Trainer knows only the classes of its own Lightning: be both.
    Callback, LightningDataModule = (
        type(kind, tuple(getattr(import_module(name), kind) for name in NAMES), {"__module__": __name__})
        for kind in ("Callback", "LightningDataModule")
    )
    isolate_rng = part("utilities.seed").isolate_rng
    is_param_in_hook_signature = part("utilities.signature_utils").is_param_in_hook_signature
    rank_zero_info, rank_zero_warn = part("utilities").rank_zero_info, part("utilities").rank_zero_warn
