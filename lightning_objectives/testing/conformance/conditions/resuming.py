"""Interrupted trainings that go on from a checkpoint, in new objects; shuffling and dropout are on."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives.testing.conformance.case import Outcome, Run
from lightning_objectives.testing.conformance.check import REFUSALS, Trial
from lightning_objectives.testing.conformance.resume import (
    difference,
    files,
    saved,
    shuffled,
    with_another_setting,
    with_random_state,
)

_EPOCHS = 3
_EVERY_EPOCH: dict[str, Any] = {}
_EVERY_BATCH: dict[str, Any] = {"every_n_train_steps": 1}


def resumed_at_an_epochs_end(trial: Trial) -> None:
    """Interrupted in any epoch but the first, and resumed from the end of the one before: the uninterrupted training.

    To the bit: weights, losses, states of the optimizer and of every callback, and the files beside them.
    """
    batches = len(trial.case.loader())
    _resumes(trial, _EVERY_EPOCH, [epoch * batches + 1 for epoch in range(1, _EPOCHS)])


def resumed_within_an_epoch(trial: Trial) -> None:
    """The same from the middle of an epoch, with a data loader that keeps its place."""
    batches = len(trial.case.loader())
    _resumes(trial, _EVERY_BATCH, [batches - 1, batches + 1])


def resumed_twice(trial: Trial) -> None:
    """Interrupted, resumed, interrupted again and resumed: the uninterrupted training, to the bit."""
    batches = len(trial.case.loader())
    whole = _whole(trial, _EVERY_BATCH)
    _require_uninterrupted(trial, whole, _train(trial, _EVERY_BATCH, stops=[batches - 1, 2 * batches - 1]))


def resumed_from_last(trial: Trial) -> None:
    """``ckpt_path="last"``: the uninterrupted training, to the bit."""
    saving = {**_EVERY_BATCH, "save_last": True}
    whole = _train(trial, saving)
    stops = [len(trial.case.loader()) + 1]
    _require_uninterrupted(trial, whole, _train(trial, saving, stops=stops, ckpt_path="last"))


def resumed_after_an_early_stop(trial: Trial) -> None:
    """A training that was stopped, and so ended in order, goes on: the one that was not, to the bit."""
    whole = _whole(trial, _EVERY_EPOCH)
    _require_uninterrupted(trial, whole, _train(trial, _EVERY_EPOCH, stops=[_Stop()]))


def resumed_with_other_settings(trial: Trial) -> None:
    """Refused in a sentence, or every state of the checkpoint that nobody takes is named in a warning."""
    root = trial.case.folder()
    _until(trial, root, _EVERY_EPOCH, None, len(trial.case.loader()) + 1)
    newest = _newest(root)
    others = [with_another_setting(callback) for callback in trial.make()]
    known = {callback.state_key for callback in with_random_state(others)}
    left = [key for key in saved(newest, Path()).get("callbacks", {}) if key not in known]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run = _fit(trial, root, _EVERY_EPOCH, others, ckpt_path=newest)
        except REFUSALS as error:
            trial.require(len(str(error).split()) > 5, f"it must refuse in a sentence, not {str(error)!r}.")
            return
    said = " ".join(str(warning.message) for warning in caught)
    unsaid = [key for key in left if key not in said and repr(key) not in said]
    trial.require(not unsaid, f"nobody takes the states {unsaid} of the checkpoint, which no warning says: {said}")
    steps = _EPOCHS * len(trial.case.loader())
    trial.require(run.trainer.global_step == steps, f"it must end after {steps} steps, not {run.trainer.global_step}.")


def taken_out_at_resume(trial: Trial) -> None:
    """Resumed without it, the training goes on as the plain module's; where its file is the plain one's, to the bit."""
    plain, root = _whole(trial, _EVERY_EPOCH, []), trial.case.folder()
    stop = len(trial.case.loader()) + 1
    _until(trial, root, _EVERY_EPOCH, None, stop)
    newest = _newest(root)

    def before() -> dict[str, Any]:
        directory = _until(trial, trial.case.folder(), _EVERY_EPOCH, [], stop)
        return saved(_newest(directory), directory)

    ours, theirs = saved(newest, root), trial.once(before, "before", stop)
    resumed = _done(_fit(trial, root, _EVERY_EPOCH, [], ckpt_path=newest, seed=99), root)
    end = resumed.saved
    other = end.keys() ^ plain.saved.keys() | end["callbacks"].keys() ^ plain.saved["callbacks"].keys()
    trial.require(not other, f"after it was taken out nothing of it may be saved, but {sorted(other)} differ.")
    groups = [[len(g["params"]) for g in o["param_groups"]] for o in end["optimizer_states"]]
    expected = [[len(g["params"]) for g in o["param_groups"]] for o in plain.saved["optimizer_states"]]
    trial.require(groups == expected, f"the optimizer must have the module's parameters {expected}, not {groups}.")
    if not any(difference(ours[key], theirs[key]) for key in ("state_dict", "optimizer_states", "lr_schedulers")):
        trial.require_same(plain, _full(plain, resumed), "its file is the plain one, and must go on so.")


def put_in_at_resume(trial: Trial) -> None:
    """A plain training goes on with it: the same at zero strength or if it says so, and always the same each time."""
    root = trial.case.folder()
    whole = _whole(trial, _EVERY_BATCH, [])
    _until(trial, root, _EVERY_BATCH, [], 1)
    newest = _newest(root)

    def go_on(callbacks: list[Any] | None) -> Outcome:
        made = trial.make() if callbacks is None else callbacks
        return _full(whole, _fit(trial, trial.case.folder(), _EVERY_BATCH, made, ckpt_path=newest, seed=99))

    idle = go_on(list(trial.plug_in.idle(trial.case)))
    trial.require_same(whole, idle, "put in at zero strength it must change nothing.")
    run = go_on(None)
    if trial.plug_in.leaves_training_alone(trial.case):  # others may find nothing to change so late: a clipped gradient
        trial.require_to_act(whole, run)
    trial.require_same(run, go_on(None), "put in twice, it must do the same.")


# -- trainings in directories ------------------------------------------------------------------------------------------


def _resumes(trial: Trial, saving: dict[str, Any], stops: list[int]) -> None:
    """Lightning itself, and then the plug-in, goes on from each stop as if there had been none."""

    def check(callbacks: list[Any] | None, who: str) -> None:
        whole = _whole(trial, saving, callbacks)
        for stop in stops:
            _require_uninterrupted(trial, whole, _train(trial, saving, callbacks, stops=[stop]), who)

    trial.once(lambda: check([], "without it, Lightning itself, resumed,"), "resumes", saving, stops)
    check(None, "resumed, it")


class _Interrupted(Exception):  # noqa: N818  # nothing went wrong
    """What stops a training in the middle."""


class _Interrupt(L.Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise _Interrupted


class _Stop(L.Callback):
    """Stops a training at the end of its first epoch, as ``EarlyStopping`` does."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 0


@dataclass
class _Done(Outcome):
    """What a training that has come to its end has left, in memory and in files."""

    logged: dict[str, Any]
    saved: dict[str, Any]
    files: dict[str, Any]


def _done(run: Run, root: Path) -> _Done:
    logged = copy.deepcopy(dict(run.trainer.callback_metrics))
    return _Done(run.weights, run.losses, logged, saved(_newest(root), root), files(root, but=("checkpoints",)))


def _whole(trial: Trial, saving: dict[str, Any], callbacks: list[Any] | None = None) -> _Done:
    """A training that nothing interrupts; remembered."""
    whose = "plain" if callbacks is not None else (trial.plug_in.make, dict(trial.case.settings))
    return trial.once(lambda: _train(trial, saving, callbacks), "whole", saving, whose)


def _train(
    trial: Trial,
    saving: dict[str, Any],
    callbacks: list[Any] | None = None,
    *,
    stops: Sequence[int | _Stop] = (),
    ckpt_path: Any = None,
) -> _Done:
    """A whole training; at each stop it is interrupted, and goes on in new objects, from another seed."""
    root, start = trial.case.folder(), None
    for stop in stops:
        _until(trial, root, saving, callbacks, stop, ckpt_path=start)
        start = ckpt_path or _newest(root)
    made = trial.make() if callbacks is None else callbacks
    return _done(_fit(trial, root, saving, made, ckpt_path=start, seed=99 if stops else 0), root)


def _until(
    trial: Trial, root: Path, saving: dict[str, Any], callbacks: list[Any] | None, stop: int | _Stop, **resume: Any
) -> Path:
    made = trial.make() if callbacks is None else callbacks
    seed = 98 if resume.get("ckpt_path") else 0
    if isinstance(stop, _Stop):
        _fit(trial, root, saving, made, stop, seed=seed, **resume)
        return root
    try:
        _fit(trial, root, saving, made, _Interrupt(stop), seed=seed, **resume)
    except _Interrupted:
        return root
    raise AssertionError(f"{trial.plug_in}: the training must come to batch {stop}, to be interrupted there.")


def _fit(trial: Trial, root: Path, saving: dict[str, Any], made: list[Any], *more: Any, **resume: Any) -> Run:
    saver = ModelCheckpoint(
        root / "checkpoints", save_top_k=-1, filename="{step}", enable_version_counter=False, **saving
    )
    callbacks = with_random_state(made)
    settings = {"enable_checkpointing": True, "default_root_dir": root, "max_epochs": _EPOCHS, **resume}
    train = shuffled(trial.case, callbacks, stateful="every_n_train_steps" in saving)
    # Logged in every step, because what the last step logged is compared too.
    run = trial.fit([*callbacks, *more, saver], train=train, log_every_n_steps=1, **settings)
    run.callbacks = callbacks
    return run


def _newest(root: Path) -> Path:
    return max((root / "checkpoints").glob("step=*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def _full(whole: _Done, resumed: Run | _Done) -> Outcome:
    """The resumed training with the losses before it."""
    before = whole.losses[: len(whole.losses) - len(resumed.losses)]
    return Outcome(resumed.weights, before + resumed.losses)


def _require_uninterrupted(trial: Trial, whole: _Done, resumed: _Done, who: str = "resumed, it") -> None:
    trial.require(0 < len(resumed.losses) < len(whole.losses), "it must train the rest, and only that.")
    sentence = f"{who} must end as the uninterrupted training."
    trial.require_same(whole, _full(whole, resumed), sentence)
    other = difference(resumed.logged, whole.logged)
    trial.require(not other, f"{sentence} What they logged last differs in {other}.")
    other = difference(resumed.saved, whole.saved)
    trial.require(not other, f"{sentence} What they saved last differs in {other}.")
    other = difference(resumed.files, whole.files)
    trial.require(not other, f"{sentence} Their files differ in {other}.")
