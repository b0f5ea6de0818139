"""Runs one training step of a copy of a module, quietly, so that the module itself stays as it is."""

import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from lightning_objectives._step.member import Member
from lightning_objectives._step.plan import Plan
from lightning_objectives._trainer.lightning import NAMES, Callback, is_overridden
from lightning_objectives.inspection.batches import Data

_ENDLESS = 10**6
"""So many epochs that no schedule of the user's ends with the one step."""


class _SeenError(Exception):
    """Ends a fit from within: there is nothing more to see."""


class _Stop(Callback):
    """Ends a fit once its first epoch, of one batch, is trained and validated, or before its first step."""

    def __init__(self, *, trains: bool) -> None:
        self.trains = trains
        self.groups: list[tuple[str, dict[str, Any]]] = []
        self.plan = ""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at what is built; end before the first step if nothing is to be trained."""
        self.groups = [(type(o).__name__, dict(group)) for o in trainer.optimizers for group in o.param_groups]
        plans = [Plan.holding(callback) for callback in trainer.callbacks if isinstance(callback, Member)]
        self.plan = plans[0].line if plans and plans[0] is not None else ""
        if not self.trains:
            raise _SeenError

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End behind the validation."""
        raise _SeenError


@dataclass
class Outcome:
    """What one trial has shown."""

    module: Any
    """The copy that was trained."""
    trainer: Any
    groups: list[tuple[str, dict[str, Any]]]
    """The class of the optimizer and the settings of each of its groups, before the first step."""
    plan: str = ""
    """What a fit with callbacks of the step tells of them; empty without such callbacks."""
    error: Exception | None = None
    warnings: Sequence[str] = ()


@dataclass
class Trials:
    """Trains copies of one module for one step each.

    Args:
        make: makes a module, the same at each call.
        settings: the words of ``Trainer`` for the device and the precision.
        data: the data.
    """

    make: Callable[[], Any]
    settings: dict[str, Any]
    data: Data

    def defines(self, name: str) -> bool:
        """Whether the module has a method of Lightning's, such as ``test_step``."""
        return bool(is_overridden(name, self.make()))

    def plain(self) -> Outcome:
        """A step without callbacks.

        Raises:
            Exception: the step's own.
        """
        outcome = self.run()
        if outcome.error is not None and self.data.is_batch:
            del self.data.brief["val_dataloader"]  # The batch of a training need not be one of a validation.
            self.data.is_batch = False
            outcome = self.run()
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def run(self, callbacks: Sequence[Any] = (), stage: str = "fit", *, trains: bool = True) -> Outcome:
        """Run one step, and a validation of one batch, with these callbacks alone; or one test step.

        Args:
            callbacks: they are used up: pass copies.
            stage: ``"fit"`` or ``"test"``.
            trains: whether to go beyond the setup.
        """
        module = self.make()
        module.configure_callbacks = list  # Those that the module brings have their own turn.
        self.data.shorten(module)
        with tempfile.TemporaryDirectory() as folder, _quiet() as told:
            stop = _Stop(trains=trains)
            trainer = self._trainer(module, folder, [*callbacks, stop])
            error = None
            try:
                # Compiled once more for each callback, a network would take minutes.
                with torch.compiler.set_stance("force_eager"):
                    if stage == "fit":
                        trainer.fit(module, **self.data.words(stage))
                    else:
                        trainer.test(module, **self.data.words(stage), verbose=False)
            except _SeenError:
                pass
            except Exception as raised:
                error = raised
        texts = list(dict.fromkeys(str(warning.message) for warning in told))
        return Outcome(module, trainer, stop.groups, stop.plan, error, texts)

    def _trainer(self, module: Any, folder: str, callbacks: list[Any]) -> Any:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
        once = {"max_epochs": _ENDLESS, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1}
        settings: dict[str, Any] = {**quiet, **once, **self.settings}
        return lightning_of(module).Trainer(**settings, default_root_dir=folder, callbacks=callbacks)


def lightning_of(module: Any) -> Any:
    """The Lightning that a module is of, under one of its two names."""
    loaded = [sys.modules[name] for name in NAMES if name in sys.modules]
    return next(lightning for lightning in loaded if isinstance(module, lightning.LightningModule))


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keep warnings, what Lightning logs and what the user's step prints from the terminal; Ctrl-C stays Ctrl-C."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as told, redirect_stdout(io.StringIO()):
            warnings.simplefilter("always")
            yield told
    except SystemExit as error:  # Lightning makes it of Ctrl-C.
        raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None
    finally:
        logging.disable(disabled)
