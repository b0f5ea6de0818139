"""What is saved, in every mode of ModelCheckpoint, and who can go on with it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives.testing.conformance.case import Run
from lightning_objectives.testing.conformance.check import Trial, differing
from lightning_objectives.testing.conformance.traces import flat, states_of

_NAMED = "{step}-{val_loss:.9f}"


def monitored(trial: Trial) -> None:
    """The best files by a metric, and the last: each reproduces the metric that it is named after."""
    _files(trial, monitor="val_loss", save_top_k=2, save_last=True, filename=_NAMED)


def weights_only_files(trial: Trial) -> None:
    """Files of the weights alone, which reproduce their metric too."""
    run = _files(trial, monitor="val_loss", save_top_k=2, save_weights_only=True, filename=_NAMED)
    for path in _paths(run):
        extra = _read(path).keys() & {"callbacks", "optimizer_states", "objective_modules"}
        trial.require(not extra, f"{path.name} holds weights alone, but also {extra}.")


def every_n_train_steps(trial: Trial) -> None:
    """Files in the middle of an epoch: those of the weights as of that step."""
    run = _files(trial, validated=False, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    trial.require(len(_paths(run)) == 3, f"there must be three files, not {[p.name for p in _paths(run)]}.")


def save_on_train_epoch_end(trial: Trial) -> None:
    """Files at the end of the epoch of training, behind the validation."""
    _files(trial, monitor="val_loss", save_top_k=2, save_on_train_epoch_end=True, filename=_NAMED)


def train_time_interval(trial: Trial) -> None:
    """Files after each batch, by a clock that is always past."""
    run = _files(trial, validated=False, train_time_interval=timedelta(0), save_top_k=-1, filename="{step}")
    trial.require(len(_paths(run)) >= 5, f"there must be a file a batch, not {[p.name for p in _paths(run)]}.")


def plug_in_removed(trial: Trial) -> None:
    """A training that is resumed without it is strict, and trains."""
    run = _trained(trial, save_last=True)
    _resumed(trial, [], _paths(run)[-1])


def plug_in_added(trial: Trial) -> None:
    """A plain training is resumed with it newly added, with the momentum of the optimizer."""
    run = _trained(trial, callbacks=[], save_last=True)
    _resumed(trial, trial.make(), _paths(run)[-1])


def hyperparameters(trial: Trial) -> None:
    """``save_hyperparameters`` holds what the user's module has, and nothing of ours."""

    def saving() -> L.LightningModule:
        module = trial.case.module()
        module.save_hyperparameters({"width": 6})
        return module

    run = _trained(trial, module=saving, save_last=True)
    for path in _paths(run):
        kept = dict(_read(path)["hyper_parameters"])
        trial.require(kept == {"width": 6}, f"the hyperparameters are {{'width': 6}}, not {kept}.")


def nothing_of_a_teacher(trial: Trial) -> None:
    """State dict, optimizer and parameter count of a file are those of the plain module's."""
    plain = trial.once(lambda: _read(_paths(_trained(trial, callbacks=[], save_last=True))[-1]), "saved")
    run = _read(_paths(_trained(trial, save_last=True))[-1])
    for what in ("state_dict", "optimizer_states"):
        a, b = ({k: getattr(v, "shape", None) for k, v in flat(one[what]).items()} for one in (plain, run))
        trial.require(a == b, f"the {what} must have the entries of the plain one's: {differing(a, b)}.")
    total = sum(value.numel() for value in run["state_dict"].values())
    trial.require(total == sum(v.numel() for v in plain["state_dict"].values()), f"{total} numbers are too many.")


def counters_after_resume(trial: Trial) -> None:
    """Right after a resume each callback keeps what it kept when the file was saved."""
    run = _trained(trial, save_last=True)
    file = _paths(run)[-1]
    began = _Began()
    callbacks = trial.make()
    _resumed(trial, [*callbacks, began], file)
    saved = {key: value for key, value in _read(file)["callbacks"].items() if key in states_of(callbacks)}
    # Whether hooks rebuilt the weights of a file is a note about the file, and no state of a callback.
    kept = {name: value for name, value in flat(saved).items() if not name.endswith(".rebuilt")}
    other = differing(kept, began.states)
    trial.require(not other, f"after a resume these are others than in the file: {other}.")


def _trained(trial: Trial, callbacks: Any = None, module: Any = None, **saver: Any) -> Run:
    made = [*(trial.make() if callbacks is None else callbacks), ModelCheckpoint(**saver)]
    settings = {} if module is None else {"module": module}
    return trial.fit(made, enable_checkpointing=True, **settings)


def _files(trial: Trial, *, validated: bool = True, **saver: Any) -> Run:
    """Every file has plain keys, is read as data, and loads, strictly and without us, with the metric of its name."""
    run = _trained(trial, **saver)
    trial.require(_paths(run), "there must be files.")
    for path in _paths(run):
        state = _read(path)["state_dict"]
        torch.manual_seed(1)
        module = trial.case.module()
        trial.require(list(state) == list(module.state_dict()), f"{path.name} has the keys {list(state)}.")
        module.load_state_dict(state, strict=True)
        if validated and "val_loss" in path.stem:
            found = trial.case.trainer().validate(module, trial.case.loader(), verbose=False)[0]["val_loss"]
            named = path.stem.partition("val_loss=")[2]
            trial.require(f"{found:.9f}" == named, f"{path.name} is named after another metric than {found:.9f}.")
    return run


def _paths(run: Run) -> list[Path]:
    return sorted((Path(run.trainer.default_root_dir) / "checkpoints").glob("*.ckpt"))


def _read(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def _resumed(trial: Trial, callbacks: list[Any], file: Path) -> Run:
    run = trial.fit(callbacks, ckpt_path=str(file), max_epochs=3, seed=2)
    trial.require(len(run.losses) == 3, f"one epoch of three batches is left to train, not {len(run.losses)} batches.")
    return run


class _Began(L.Callback):
    """Keeps what the callbacks before it keep when the training starts."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        before = trainer.callbacks[: trainer.callbacks.index(self)]
        self.states = flat(states_of(before))
