"""``validate``, ``test`` and ``predict``: alone, before a fit and after it, and which weights each of them sees.

What changes the results of a test on purpose is at zero strength here; the family ``tests`` tries it.
"""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives.testing.conformance.case import Run
from lightning_objectives.testing.conformance.check import Trial, differing, shape_of
from lightning_objectives.testing.conformance.plug_ins import plain_in_tests
from lightning_objectives.testing.conformance.traces import flat


def validate_alone(trial: Trial) -> None:
    """The metrics of the plain trainer, no warning of our own, and the module as found."""
    _alone(trial, "validate")


def test_alone(trial: Trial) -> None:
    """The same of a test without a fit."""
    _alone(trial, "test")


def predict_alone(trial: Trial) -> None:
    """The same of predictions."""
    _alone(trial, "predict")


def validate_before_fit(trial: Trial) -> None:
    """A validation in inference mode does not reach the training that follows it, with the same callbacks."""
    callbacks = trial.make()
    torch.manual_seed(0)
    module = trial.case.module()
    trial.case.trainer(*callbacks).validate(module, trial.case.loader(), verbose=False)
    run = trial.fit(callbacks, module=module)
    trial.require_same(run, trial.usual(), "a fit after a validation must be one without.")


def stages_after_fit(trial: Trial) -> None:
    """With ``ckpt_path`` None, best, last or a file, on any trainer: the metrics of those weights, as in the fit."""
    run = _saved(trial)
    saver = next(c for c in run.callbacks if isinstance(c, ModelCheckpoint))
    left, last = run.weights, torch.load(saver.last_model_path, weights_only=True)["state_dict"]
    trial.require(
        not differing(left, dict(last)), f"the fit leaves other weights than it saved: {differing(left, last)}"
    )
    seen = {name: float(value) for name, value in run.trainer.callback_metrics.items() if name == "val_loss"}
    first = str(Path(saver.last_model_path).with_name("epoch=0.ckpt"))
    for path, file in ((None, None), ("last", saver.last_model_path), ("best", saver.best_model_path), (first, first)):
        expected = _plain(trial, run.module, file)
        if path in (None, "last"):
            trial.require(
                expected[0]["val_loss"] == seen["val_loss"], f"the fit logged {seen}, its weights {expected}."
            )
        elif path == "best":
            best = float(saver.best_model_score or torch.nan)
            trial.require(expected[0]["val_loss"] == best, f"the best is named {best}, but is {expected[0]}.")
        with_same = _both(trial, run.trainer, run.module, path)
        trial.require(_close(with_same, expected), f"ckpt_path={path}: {with_same}, not {expected}.")
        fresh = _both(trial, trial.case.trainer(*_ready(run)), trial.case.module() if file else run.module, file)
        trial.require(_close(fresh, expected), f"another trainer on {file}: {fresh}, not {expected}.")


def another_module_after_fit(trial: Trial) -> None:
    """Another module is validated, tested and used as it is: no weights of the one that was trained come to it."""
    run = _saved(trial)
    torch.manual_seed(5)
    other = trial.case.module()
    before, shape = dict(flat(other.state_dict())), shape_of(other)
    expected = _plain(trial, other, None)
    found = _both(trial, run.trainer, other, None)
    trial.require(_close(found, expected), f"another module gives {found}, not {expected}.")
    trial.require(not differing(before, dict(other.state_dict())), "another module must keep its weights.")
    trial.require_as_found(other, shape)


def weights_in_a_validation(trial: Trial) -> None:
    """Each validation hook of a fit sees the weights that the file saved after it holds."""
    seen = _Sees()
    run = trial.fit(
        [*trial.make(), seen, ModelCheckpoint(filename="{epoch}", save_top_k=-1)], enable_checkpointing=True
    )
    saver = next(c for c in run.callbacks if isinstance(c, ModelCheckpoint))
    file = torch.load(saver.best_model_path, weights_only=True)["state_dict"]
    for hook, weights in seen.weights.items():
        other = differing(weights, dict(file))
        trial.require(not other, f"{hook} sees others than the file holds: {other}.")


class _Untouched(L.Callback):
    """Requires that nothing is there that only a training needs."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def _look(self, trainer: Any, pl_module: Any) -> None:
        patched = {"training_step", "configure_optimizers", "on_save_checkpoint"} & vars(pl_module).keys()
        self.trial.require(not patched, f"{patched} are taken, though nothing is trained.")
        extra = [name for name, part in pl_module.named_children() if not part.state_dict() and any(part.parameters())]
        self.trial.require(not extra, f"{extra} are added, though nothing is trained.")

    on_validation_start = on_test_start = on_predict_start = _look


class _Sees(L.Callback):
    """Keeps the weights that the last validation's hooks saw, of those after our own began and before it ended."""

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def _keep(self, hook: str, pl_module: Any) -> None:
        self.weights[hook] = dict(flat(pl_module.state_dict()))

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._keep("on_validation_epoch_start", pl_module)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._keep("on_validation_batch_start", pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._keep("on_validation_batch_end", pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._keep("on_validation_epoch_end", pl_module)


def _alone(trial: Trial, stage: str) -> None:
    results, said, shapes = [], [], []
    for callbacks in ([], plain_in_tests(trial.make())):
        torch.manual_seed(0)
        module = trial.case.module()
        shape, before = shape_of(module), dict(flat(module.state_dict()))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(_run(trial.case.trainer(*callbacks, _Untouched(trial)), stage, module, trial, None))
        said.append({str(one.message) for one in caught})
        shapes.append(shape)
        trial.require_as_found(module, shape)
        trial.require(not differing(before, dict(module.state_dict())), f"{stage} alone must leave the weights alone.")
    trial.require(not said[1] - said[0], f"{stage} alone must not warn: {said[1] - said[0]}")
    trial.require(_close([results[1]], [results[0]]), f"{stage} alone gives {results[1]}, not {results[0]}.")


def _saved(trial: Trial) -> Run:
    saver = ModelCheckpoint(monitor="val_loss", save_last=True, save_top_k=-1, filename="{epoch}")
    return trial.fit([*plain_in_tests(trial.make()), saver], enable_checkpointing=True)


def _ready(run: Run) -> list[Any]:
    """The callbacks of the run, which know what they learnt, without those of the user."""
    return [callback for callback in run.callbacks if not isinstance(callback, ModelCheckpoint)]


def _both(trial: Trial, trainer: Any, module: Any, path: Any) -> list[Any]:
    return [_run(trainer, stage, module, trial, path) for stage in ("validate", "test", "predict")]


def _plain(trial: Trial, module: Any, file: Any) -> list[Any]:
    """What a plain trainer finds with a copy of the module, or with the weights of a file."""
    copied = trial.case.module()
    copied.load_state_dict(torch.load(file, weights_only=True)["state_dict"] if file else module.state_dict())
    return _both(trial, trial.case.trainer(), copied, None)


def _run(trainer: Any, stage: str, module: Any, trial: Trial, path: Any) -> Any:
    if stage == "predict":
        return torch.cat(trainer.predict(module, trial.case.loader(), ckpt_path=path))
    return getattr(trainer, stage)(module, trial.case.loader(), ckpt_path=path, verbose=False)[0]


def _close(found: list[Any], expected: list[Any]) -> bool:
    """The user's own metrics, and the predictions, are the same to the bit."""
    for mine, plain in zip(found, expected):
        if isinstance(plain, torch.Tensor):
            if not torch.equal(mine, plain):
                return False
        elif any(mine.get(name) != value for name, value in plain.items()):
            return False
    return True
