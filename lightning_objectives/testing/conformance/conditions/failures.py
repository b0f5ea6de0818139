"""An error, or Ctrl+C, in every hook that Lightning calls."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_objectives.testing.conformance.case import Losses
from lightning_objectives.testing.conformance.check import Trial, differing, shape_of
from lightning_objectives.testing.conformance.traces import Raw, flat, parameters_of

_SHORT = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
_STEPS = ("training_step", "validation_step", "test_step", "forward", "backward", "configure_optimizers")


def a_failing_fit(trial: Trial) -> None:
    """An error, and Ctrl+C, in every hook of ``fit``: the raw weights are left, and the next fit is as good as new."""
    _each_hook_fails(trial, "fit")


def a_failing_validation(trial: Trial) -> None:
    """An error, and Ctrl+C, in every hook of ``validate``: nothing is left of it, and the next fit is as new."""
    _each_hook_fails(trial, "validate")


def a_failing_test(trial: Trial) -> None:
    """An error, and Ctrl+C, in every hook of ``test``, after a fit."""
    _each_hook_fails(trial, "test")


def a_checkpoint_at_an_exception(trial: Trial) -> None:
    """What OnExceptionCheckpoint saves has the weights that are validated, and the raw ones to go on with."""
    for hook in ("on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_train_epoch_end"):
        for front in (True, False):
            _saved_at(trial, hook, front=front)


class _Planned(Exception):  # noqa: N818  # it is none of the user's
    pass


class _Fault:
    """Counts the calls of hooks, and fails in one of them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.at, self.interrupts = "", False
        self.last: Counter[str] = Counter()
        """The number of calls of each hook, when nothing failed."""

    def arm(self, at: str, *, interrupts: bool) -> None:
        self.at, self.interrupts, self.calls = at, interrupts, Counter()

    def passes(self, name: str) -> None:
        self.calls[name] += 1
        if name == self.at and self.calls[name] == self.last[name]:  # the last time, when most is under way
            if self.interrupts:
                signal.raise_signal(signal.SIGINT)
            raise _Planned(name)


def _probe(fault: _Fault) -> Any:
    """A callback with every hook that there is."""

    def hook(name: str) -> Callable[..., Any]:
        def called(self: Any, *args: Any, **kwargs: Any) -> Any:
            fault.passes(f"Callback.{name}")
            return getattr(L.Callback, name)(self, *args, **kwargs)

        return called

    hooks = [name for name in dir(L.Callback) if name.startswith("on_") or name in ("setup", "teardown", "state_dict")]
    return type("_Probe", (L.Callback,), {name: hook(name) for name in hooks})()


def _faulty(cls: type[Any], fault: _Fault) -> type[Any]:
    """The user's class with every hook that there is."""

    def hook(name: str, theirs: Any) -> Callable[..., Any]:
        def called(self: Any, *args: Any, **kwargs: Any) -> Any:
            fault.passes(f"LightningModule.{name}")
            return theirs(self, *args, **kwargs)

        if name in _STEPS:
            called.__wrapped__ = theirs  # type: ignore[attr-defined]  # Lightning reads the signature of a step
        return called

    named = [name for name in dir(cls) if name.startswith(("on_", "optimizer_", "configure_")) or name in _STEPS]
    named = [name for name in [*named, "setup", "teardown"] if name != "configure_sharded_model"]
    hooks = {name: hook(name, getattr(cls, name)) for name in named if callable(getattr(cls, name))}
    return type(cls.__name__, (cls,), hooks)


class _Stand:
    """One module and one set of callbacks, which all the failing runs are tried on, one after the other."""

    def __init__(self, trial: Trial, stage: str) -> None:
        self.trial, self.stage, self.fault = trial, stage, _Fault()
        torch.manual_seed(0)
        self.module: Any = trial.case.module()
        self.module.__class__ = _faulty(type(self.module), self.fault)
        self.callbacks = trial.make()
        self.probe, self.raw, self.losses = _probe(self.fault), Raw(), Losses()
        self.start = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.shape = shape_of(self.module)
        self.data = trial.case.loader_for(self.callbacks)

    def run(self, stage: str, *, front: bool = False, **settings: Any) -> Any:
        beside = [self.probe, *self.callbacks] if front else [*self.callbacks, self.probe]
        saver = ModelCheckpoint(None, monitor=None)
        L.seed_everything(0, verbose=False)
        self.losses.values, self.raw.weights = [], {}
        trainer = self.trial.case.trainer(
            *beside, self.raw, self.losses, saver, **{"enable_checkpointing": True, **_SHORT, **settings}
        )
        if stage == "fit":
            self.module.load_state_dict(self.start)
            self.module.train()  # Lightning leaves it in eval mode where a validation is interrupted
            trainer.fit(self.module, self.data, self.trial.case.loader())
        else:
            getattr(trainer, stage)(self.module, self.trial.case.loader(), verbose=False)
        return trainer

    def left(self) -> dict[str, Any]:
        return flat({"weights": self.module.state_dict(), "losses": self.losses.values})

    def as_found(self, what: str) -> None:
        after = shape_of(self.module)
        other = {name: (self.shape.get(name), now) for name, now in after.items() if self.shape.get(name) != now}
        self.trial.require(not other, f"{what} left these behind (before, after): {other}")


def _each_hook_fails(trial: Trial, stage: str) -> None:
    stand = _Stand(trial, stage)
    stand.run("fit")
    whole = stand.left()
    trained = {name: value.clone() for name, value in stand.module.state_dict().items()}
    stand.fault.arm("", interrupts=False)
    if stage != "fit":
        stand.run("validate" if stage == "validate" else "test")
    else:
        stand.run("fit")
    stand.fault.last = Counter(stand.fault.calls)
    trial.require(len(stand.fault.last) > 10, f"only {dict(stand.fault.last)} were called.")
    for name in stand.fault.last:
        for front in (True, False):
            stand.fault.arm(name, interrupts=front == name.startswith("LightningModule."))
            what = f"{'Ctrl+C' if stand.fault.interrupts else 'an error'} in {name} of {stage}"
            with _caught(trial, what):
                stand.run(stage, front=front)
            stand.as_found(what)
            if stage == "fit":
                _holds_raw(stand, whole, what)
            else:
                other = differing(trained, dict(stand.module.state_dict()))
                trial.require(not other, f"{what} changed {other}.")
    stand.fault.arm("", interrupts=False)
    stand.run("fit")
    trial.require(not differing(whole, stand.left()), f"the fit after all of these differs in {stand.left()}.")


def _holds_raw(stand: _Stand, whole: dict[str, Any], what: str) -> None:
    """Where training was going on, the module holds what it goes on with; each loss on the way is that of a new fit."""
    losses = [value for name, value in whole.items() if name.startswith("losses.")]
    seen = stand.losses.values
    stand.trial.require(repr(seen) == repr(losses[: len(seen)]), f"the losses before {what} are {seen}, not {losses}.")
    if not stand.raw.weights:
        return
    now = parameters_of(stand.module)
    other = differing(stand.raw.weights, now)
    if stand.fault.calls["Callback.on_train_end"] and other:  # the training is over: those that it leaves may be there
        other = differing({name: whole[f"weights.{name}"] for name in now}, now)
    stand.trial.require(not other, f"after {what} the module must hold the raw weights, which differ in {other}.")


@contextmanager
def _caught(trial: Trial, what: str) -> Iterator[None]:
    """The planned error comes through, whatever is done on its way; Ctrl+C works again afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except _Planned:
        return
    except SystemExit:
        return
    finally:
        signal.signal(signal.SIGINT, before)
    raise AssertionError(f"{trial.plug_in}: {what} did not come through.")


class _At(L.Callback):
    """Keeps the weights that stand in the module at a hook, and fails there."""

    def __init__(self, hook: str) -> None:
        self.weights: dict[str, Any] = {}

        def fails(trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx >= 1:
                self.weights = dict(flat(pl_module.state_dict()))
                raise _Planned(hook)

        setattr(self, hook, fails)


def _saved_at(trial: Trial, hook: str, *, front: bool) -> None:
    at, raw = _At(hook), Raw()
    last: dict[str, Any] = {}

    class Seen(L.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            last.update(flat(pl_module.state_dict()))

    saver, callbacks = OnExceptionCheckpoint(""), trial.make()
    trainer = trial.case.trainer(
        *([at, *callbacks] if front else [*callbacks, at]), raw, saver, Seen(), **_SHORT, enable_checkpointing=True
    )
    saver.dirpath = trainer.default_root_dir
    torch.manual_seed(0)
    module = trial.case.module()
    keys = list(module.state_dict())
    torch.manual_seed(0)
    with _caught(trial, f"an error in {hook}"):
        trainer.fit(module, trial.case.loader_for(callbacks), trial.case.loader())
    saved = torch.load(Path(saver.ckpt_path), weights_only=True)
    trial.require(list(saved["state_dict"]) == keys, f"the file has the keys {list(saved['state_dict'])}, not {keys}.")
    resumed, began = trial.make(), _Began()
    again = trial.case.trainer(*resumed, began, **{**_SHORT, "max_epochs": 2})
    again.fit(trial.case.module(), trial.case.loader_for(resumed), trial.case.loader(), ckpt_path=saver.ckpt_path)
    other = differing(raw.weights, began.weights)
    trial.require(not other, f"saved at {hook}, it must go on with the raw weights, which differ in {other}.")
    if last:
        other = differing(last, flat(saved["state_dict"]))
        trial.require(not other, f"saved at {hook}, it must hold the validated weights, which differ in {other}.")


class _Began(L.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights = parameters_of(pl_module)
