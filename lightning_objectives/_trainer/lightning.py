"""Takes what this package needs from Lightning, under its two names ``lightning.pytorch`` and ``pytorch_lightning``.

Either name alone will do. If both are installed, only those that your program imports are imported here.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

NAMES = ("lightning.pytorch", "pytorch_lightning")
"""The names of Lightning. The first one that the program has imported gives us what both have in common."""


def _name() -> str:
    for name in NAMES:
        if sys.modules.get(name) is not None:
            return name
    for name in NAMES:
        if find_spec(name.partition(".")[0]) and find_spec(name):  # looking for a part of a missing package raises
            return name
    raise ModuleNotFoundError("Callbacks need Lightning: pip install lightning.", name="lightning")


_NAME = _name()


def part(name: str) -> Any:
    """Import a module of the Lightning that the program uses, such as ``"cli"``; ``""`` is the whole package."""
    return import_module(f"{_NAME}.{name}".rstrip("."))


VERSION: str = part("").__version__


class _OfBothNames:
    """Looks for the other Lightning whenever the program makes a class or an object of ours."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        derive_from_both()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        derive_from_both()
        return super().__new__(cls)


def derive_from_both() -> None:
    """Make our base classes subclasses of those of each Lightning that the program has imported by now.

    A Trainer knows the classes of its own Lightning only. A program may import the second one after this module; what
    it made of our classes before then follows.
    """
    for ours in _OfBothNames.__subclasses__():
        for name in NAMES:
            theirs = getattr(sys.modules.get(name), ours.__name__, None)
            if theirs is not None and not issubclass(ours, theirs):
                ours.__bases__ = (*ours.__bases__, theirs)


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
    isolate_rng = part("utilities.seed").isolate_rng
    is_param_in_hook_signature = part("utilities.signature_utils").is_param_in_hook_signature
    rank_zero_info, rank_zero_warn = part("utilities").rank_zero_info, part("utilities").rank_zero_warn

    class Callback(_OfBothNames, part("").Callback):
        """The base class of callbacks, for the Trainers of both names."""

    class LightningDataModule(_OfBothNames, part("").LightningDataModule):
        """The base class of data modules, for the Trainers of both names."""
