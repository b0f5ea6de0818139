"""Takes what this package needs from Lightning, under its two names ``lightning.pytorch`` and ``pytorch_lightning``.

Either name alone will do. If both are installed, only those that your program imports are imported here, and it may
import the second one later.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
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


if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.utilities import model_helpers, seed, signature_utils

    # By assignment: the documentation follows imports, and stops before other people's packages.
    Callback = pl.Callback
    LightningDataModule = pl.LightningDataModule
    rank_zero_info, rank_zero_warn = pl.utilities.rank_zero_info, pl.utilities.rank_zero_warn
    isolate_rng = seed.isolate_rng
    is_overridden = model_helpers.is_overridden
    is_param_in_hook_signature = signature_utils.is_param_in_hook_signature
else:
    isolate_rng = part("utilities.seed").isolate_rng
    is_overridden = part("utilities.model_helpers").is_overridden
    is_param_in_hook_signature = part("utilities.signature_utils").is_param_in_hook_signature
    rank_zero_info, rank_zero_warn = part("utilities").rank_zero_info, part("utilities").rank_zero_warn

    class Callback(part("").Callback):
        """The base class of callbacks, for the Trainers of both names."""

    class LightningDataModule(part("").LightningDataModule):
        """The base class of data modules, for the Trainers of both names."""


def derive_from_both() -> None:
    """Make our base classes subclasses of those of each Lightning that is imported, as its Trainer knows no others."""
    for ours in (Callback, LightningDataModule):
        for name in NAMES:
            theirs = getattr(sys.modules.get(name), ours.__name__, ours)
            if not issubclass(ours, theirs):
                ours.__bases__ = (*ours.__bases__, theirs)


class _OtherLightning(MetaPathFinder):
    """Calls :func:`derive_from_both` when the program imports the other Lightning, and waits for that until then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in NAMES:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                derive_from_both()
                sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return spec


derive_from_both()
if not all(sys.modules.get(name) for name in NAMES):
    sys.meta_path.insert(0, _OtherLightning())
