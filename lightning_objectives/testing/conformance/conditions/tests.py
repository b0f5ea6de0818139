"""What ``test`` and ``predict`` compute: the plain results at zero strength, to the bit, and the module as found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.testing.conformance.case import Case
from lightning_objectives.testing.conformance.check import Trial, differing, shape_of
from lightning_objectives.testing.conformance.variants import Make, variant

Results = list[dict[str, Any]]
"""Of a test the metrics of each loader, of predictions a tensor for each batch."""


def tested_twice(trial: Trial) -> None:
    """A second test with the same trainer and callbacks gives what the first gave."""
    run = _holds(trial, lambda tested: tested.test() + tested.test())
    half = len(run) // 2
    trial.require(not _other(run[:half], run[half:]), f"the second test gives {run[half:]}, not {run[:half]}.")


def several_test_loaders(trial: Trial) -> None:
    """Of each of two loaders the results are those of the loader alone."""
    trial = replace(trial, case=_like(trial.case, variant(trial.case.module, _of_several_loaders)))
    first, second = trial.case.loader(), trial.case.loader(batch_size=max(2, trial.case.batch_size // 2))
    run = _holds(trial, lambda tested: tested.test([first, second]))
    for mine, loader in zip(run, (first, second)):
        alone = _own(trial, _Tested(trial, trial.make()).test(loader)[0])
        named = _own(trial, {name.partition("/dataloader_idx")[0]: value for name, value in mine.items()})
        trial.require(not _other([named], [alone]), f"a loader among two gives {named}, not {alone} as by itself.")


def tested_with_a_checkpoint(trial: Trial) -> None:
    """With ``ckpt_path`` the results are those of the file's weights, which the module has afterwards."""
    torch.manual_seed(7)
    other = trial.case.module()
    trainer = trial.case.trainer()
    trainer.strategy.connect(other)
    path = trial.case.folder() / "other.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    run = _holds(trial, lambda tested: tested.test(ckpt_path=path), weights=dict(other.state_dict()))
    mine, direct = _own(trial, run[0]), _own(trial, _Tested(trial, trial.make(), module=other).test()[0])
    trial.require(not _other([mine], [direct]), f"the weights of a file give {mine}, not {direct} as of a module.")


def predicted_batches(trial: Trial) -> None:
    """Predictions have the shapes of the plain ones, and no gradient."""
    run = _holds(trial, lambda tested: tested.predict())
    plain = trial.once(lambda: _Tested(trial, []).predict(), "predicted")
    shapes = [{name: value.shape for name, value in batch.items()} for batch in run]
    expected = [{name: value.shape for name, value in batch.items()} for batch in plain]
    trial.require(shapes == expected, f"the predictions must have the shapes {expected}, not {shapes}.")
    graphs = [name for batch in run for name, value in batch.items() if value.requires_grad]
    trial.require(not graphs, "a prediction must have no gradient.")


def tested_in_other_precisions(trial: Trial) -> None:
    """With bfloat16 autocast, and with bfloat16 and float64 weights."""
    for precision in ("bf16-mixed", "bf16-true", "64-true"):
        _holds(trial, lambda tested: tested.test(), precision=precision)


def tested_without_inference_mode(trial: Trial) -> None:
    """With ``Trainer(inference_mode=False)``, which stays off."""
    run = _holds(trial, lambda tested: tested.test(), inference_mode=False)
    other = _Tested(trial, trial.make()).test()
    trial.require(not _other(run, other), f"without inference mode a test gives {run}, not {other}.")


def an_interrupted_test(trial: Trial) -> None:
    """An exception or Ctrl-C in the second batch of a test or of predictions leaves the module as it was."""
    for error in (RuntimeError, KeyboardInterrupt):
        made = variant(trial.case.module, _failing(error))
        for stage in ("test", "predict"):
            tested = _Tested(replace(trial, case=_like(trial.case, made)), trial.make())
            try:
                getattr(tested, stage)()
                trial.require(False, "the error of a step must be raised.")
            except (RuntimeError, SystemExit):
                tested.check()


# -- how


class _Tested:
    """A module and a trainer with a plug-in, after a validation, which some need before they can test."""

    def __init__(
        self,
        trial: Trial,
        callbacks: list[Any],
        *,
        module: Any = None,
        weights: dict[str, Tensor] | None = None,
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.trial = trial
        self.module = trial.case.module() if module is None else module
        self.trainer = trial.case.trainer(*callbacks, **settings)
        self.trainer.validate(self.module, trial.case.loader(), verbose=False)
        self.shape = shape_of(self.module)
        self.weights = {name: value.clone() for name, value in (weights or self.module.state_dict()).items()}
        self.modes = self._modes()

    def _modes(self) -> list[bool]:
        return [self.trainer.test_loop.inference_mode, self.trainer.predict_loop.inference_mode]

    def test(self, loaders: Any = None, **settings: Any) -> Results:
        """The metrics of each loader."""
        loaders = self.trial.case.loader() if loaders is None else loaders
        found: Any = self.trainer.test(self.module, loaders, verbose=False, **settings)
        self.check()
        return list(found)

    def predict(self) -> Results:
        """The predictions of each batch, where they are tensors."""
        found: Any = self.trainer.predict(self.module, self.trial.case.loader())
        self.check()
        return [{"prediction": value} for value in found if isinstance(value, Tensor)]

    def check(self) -> None:
        """The module and the loops are as they were found."""
        self.trial.require_as_found(self.module, self.shape)
        moved = differing(self.weights, dict(self.module.state_dict()))
        self.trial.require(not moved, f"a test must leave the weights alone, but {moved} differ.")
        modes = self._modes()
        self.trial.require(modes == self.modes, f"the loops' inference mode must be {self.modes}, not {modes}.")


def _holds(trial: Trial, run: Callable[[_Tested], Results], **settings: Any) -> Results:
    """The laws of every test: plain at zero strength, to the bit; it acts if it says so; two equal tests are equal."""
    plain = run(_Tested(trial, [], **settings))
    idle = run(_Tested(trial, list(trial.plug_in.idle(trial.case)), **settings))
    trial.require(not _other(plain, idle), f"at zero strength a test must be the plain one: {idle}, not {plain}.")
    found, again = (run(_Tested(trial, trial.make(), **settings)) for _ in range(2))
    trial.require(not _other(found, again), f"two equal tests must be equal, but give {found} and {again}.")
    acts = bool(_other(plain, found))
    if trial.plug_in.changes_tests(trial.case):
        trial.require(acts, f"it must change what a test computes, but gives {found} as the plain one.")
    else:
        trial.require(not acts, f"it must leave what a test computes alone, but gives {found}, not {plain}.")
    return found


def _other(expected: Results, found: Results) -> list[str]:
    """The names of the user's own results that are not the same to the bit."""
    if len(expected) != len(found):
        return ["the number of results"]
    pairs = list(zip(expected, found))
    return [name for mine, other in pairs for name in differing(mine, {key: other.get(key) for key in mine})]


def _own(trial: Trial, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that the user's step logs, which depend on nothing but the network and the loader."""
    own = trial.once(lambda: _Tested(trial, []).test(), "tested")[0]
    return {name: value for name, value in metrics.items() if name in own}


def _like(case: Case, module: Make) -> Case:
    return Case(
        module=module, data=case.data, settings=case.settings, batch_size=case.batch_size, trainers=case.trainers
    )


def _of_several_loaders(user: Any) -> dict[str, Any]:
    """A test step that also takes the number of the loader."""
    named = "dataloader_idx" in user.test_step.__code__.co_varnames

    def test_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        more = (dataloader_idx,) if named else ()
        return user.test_step(self, batch, batch_idx, *more)

    return {"test_step": test_step}


def _failing(error: type[BaseException]) -> Callable[[Any], dict[str, Any]]:
    """Steps that raise an error at the end of the second batch."""

    def methods(user: Any) -> dict[str, Any]:
        def failing(step: Any) -> Any:
            def failed(self: Any, batch: Any, batch_idx: int) -> Any:
                result = step(self, batch, batch_idx)
                if batch_idx == 1:
                    raise error
                return result

            return failed

        return {"test_step": failing(user.test_step), "predict_step": failing(user.predict_step)}

    return methods
