"""The optimizers, and what a training step takes and returns."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch

from lightning_objectives.testing.conformance.case import Run
from lightning_objectives.testing.conformance.check import Trial
from lightning_objectives.testing.conformance.variants import (
    Methods,
    Probe,
    counters,
    loud,
    sgd,
    step_of,
    variant,
)

_CLIP = 1e-3

# -- the optimizers


def accumulation(trial: Trial) -> None:
    """Several batches a step, with a partial last window; what counts steps counts those of the optimizer.

    Lightning divides the gradient of a partial window by the whole window's length, with and without plug-ins.
    """
    batches = len(trial.case.loader())
    window = next(n for n in range(2, batches + 2) if batches % n)
    module = variant(trial.case.module, loud)  # or a transform of great gradients would find none
    _, run = trial.holds(module=module, accumulate_grad_batches=window)
    as_many = trial.fit(module=module, limit_train_batches=-(-batches // window))
    taken = as_many.trainer.global_step
    trial.require(run.trainer.global_step == taken, f"{taken} steps must be taken, not {run.trainer.global_step}.")
    wrong = [f"{name}={count}" for name, count in counters(run) if name.endswith(".steps") and count != taken]
    trial.require(not wrong, f"{taken} steps were taken, but the states say {wrong}.")
    _require_counters(trial, run, as_many, f"{taken} steps in windows of {window} batches count as {taken} steps")


def clipping_by_norm(trial: Trial) -> None:
    """``gradient_clip_val``: the gradient of all that is trained is clipped last."""
    _clipped(trial, lambda gradient: gradient.norm())


def clipping_by_value(trial: Trial) -> None:
    """``gradient_clip_algorithm="value"``: each element of the gradient is clipped last."""
    _clipped(trial, lambda gradient: gradient.abs().max(), gradient_clip_algorithm="value")


def added_parameters(trial: Trial) -> None:
    """What a plug-in adds is trained, by an optimizer too that was given the user's own parameters one by one."""

    def listed(user: Any) -> dict[str, Any]:
        return {"configure_optimizers": lambda self: torch.optim.SGD(self.listed, lr=0.1)}

    def keep(module: Any) -> None:
        module.listed = list(module.parameters())

    def parameters(module: Any) -> dict[str, Any]:
        groups = [group["params"] for optimizer in module.trainer.optimizers for group in optimizer.param_groups]
        held = [id(parameter) for group in groups for parameter in group]
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        other = [name for name, parameter in trained.items() if held.count(id(parameter)) != 1]
        trial.require(not other, f"the optimizer must hold each parameter once, but not so {other}.")
        return {name: parameter.detach().clone() for name, parameter in trained.items()}

    probe = Probe(start=parameters, end=parameters)
    trial.fit([*trial.make(), probe], module=variant(trial.case.module, listed, keep))
    first, last = probe.starts[0], probe.ends[-1]
    still = [name for name in first.keys() - trial.case.module().state_dict() if first[name].equal(last[name])]
    trial.require(not still, f"what it adds must be trained, but {still} are as they began.")


def manual_optimization(trial: Trial) -> None:
    """``automatic_optimization = False``: the module optimizes by hand."""
    trial.holds(module=variant(trial.case.module, _by_hand(optimizers=1)))


def several_optimizers(trial: Trial) -> None:
    """Two optimizers, by hand: a batch in which both step counts once."""
    module = variant(trial.case.module, _by_hand(optimizers=2))
    _, run = trial.holds(module=module)
    one = trial.fit(module=variant(trial.case.module, _by_hand(optimizers=1)))
    _require_counters(trial, run, one, "two optimizers that step in one batch count once")


def lbfgs(trial: Trial) -> None:
    """An optimizer that evaluates the step several times a batch; what counts batches or steps counts it once."""
    _, run = trial.holds(module=variant(trial.case.module, _lbfgs(evaluations=3)))
    once = trial.fit(module=variant(trial.case.module, _lbfgs(evaluations=1)))
    _require_counters(trial, run, once, "a batch is one step, however often it is evaluated")


def fused_optimizer(trial: Trial) -> None:
    """``fused=True``."""
    trial.holds(module=variant(trial.case.module, sgd(fused=True)))


def foreach_optimizer(trial: Trial) -> None:
    """``foreach=True``: the weights are those of an optimizer that takes one parameter after the other."""
    _, run = trial.holds(module=variant(trial.case.module, sgd(foreach=True)))
    single = trial.fit(module=variant(trial.case.module, sgd(foreach=False)))
    far = [name for name, value in run.weights.items() if not torch.allclose(value, single.weights[name], atol=1e-5)]
    trial.require(not far, f"foreach=True and foreach=False must train the same, but {far} differ.")


# -- what a step takes


def a_step_of_the_batch_alone(trial: Trial) -> None:
    """``training_step(batch)``: the training is that of ``(batch, batch_idx)``."""

    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, batch: Any) -> Any:
            return step_of(user)(self, batch, 0)

        return {"training_step": training_step}

    _same_as_usual(trial, methods)


def a_step_of_any_arguments(trial: Trial) -> None:
    """``training_step(*args)``: the training is that of ``(batch, batch_idx)``."""

    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, *args: Any) -> Any:
            return step_of(user)(self, args[0], 0)

        return {"training_step": training_step}

    _same_as_usual(trial, methods)


def dataloader_iter(trial: Trial) -> None:
    """``training_step(dataloader_iter)``: the step draws its batches itself."""

    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, dataloader_iter: Iterator[Any]) -> Any:
            batch, batch_idx, _ = next(dataloader_iter)
            return step_of(user)(self, batch, batch_idx)

        return {"training_step": training_step}

    _same_as_usual(trial, methods)


# -- what it returns


def a_step_that_returns_a_dict(trial: Trial) -> None:
    """``{"loss": ..., "more": ...}``: the training is that of the loss alone, and the rest comes through."""
    seen: list[Any] = []

    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            loss = step_of(user)(self, batch, batch_idx)
            return {**(loss if isinstance(loss, dict) else {"loss": loss}), "more": batch_idx}

        def on_train_batch_end(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append((outputs["more"], batch_idx))

        return {"training_step": training_step, "on_train_batch_end": on_train_batch_end}

    _same_as_usual(trial, methods)
    trial.require(
        seen and all(a == b for a, b in seen), f"what the step returns beside the loss must come through: {seen}."
    )


def a_step_that_returns_none(trial: Trial) -> None:
    """None for every other batch: nothing is trained on it; Lightning counts it as a step all the same."""

    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else step_of(user)(self, batch, batch_idx)

        return {"training_step": training_step}

    def values(module: Any) -> list[Any]:
        return [parameter.detach().clone() for parameter in module.parameters()]

    module = variant(trial.case.module, methods)
    trial.holds(module=module)
    probe = Probe(values, values)
    trial.fit([*trial.make(), probe], module=module, max_epochs=1)
    for number, (before, after) in enumerate(zip(probe.starts, probe.ends)):
        same = all(torch.equal(a, b) for a, b in zip(before, after))
        trial.require(
            same == bool(number % 2), f"batch {number} must train {'nothing' if number % 2 else 'something'}."
        )


# -- how


def _require_counters(trial: Trial, a: Run, b: Run, sentence: str) -> None:
    # The parts that several optimizers step are counted beside the whole; of one optimizer there are no parts.
    mine, theirs = ([(path, n) for path, n in counters(run) if ".turns." not in path] for run in (a, b))
    other = sorted(set(mine) ^ set(theirs))
    trial.require(mine == theirs, f"{sentence}, but in the states these differ: {other}.")


def _same_as_usual(trial: Trial, methods: Methods) -> None:
    """With other forms of the step the training is the usual one: without the plug-in, with it, at zero strength."""
    module = variant(trial.case.module, methods)
    plain = trial.plain()
    trial.require_same(plain, trial.idle(module=module), "at zero strength it must be the training without it.")
    run = trial.fit(module=module)
    trial.require_same(trial.usual(), run, "the training must be that of a step that takes and returns the usual.")
    trial.require_to_act(plain, run)


class _Gradients(L.Callback):
    """Measures the gradients with which the optimizers step."""

    def __init__(self, size: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.size = size
        self.sizes: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.handles = [optimizer.register_step_post_hook(self._measure) for optimizer in trainer.optimizers]

    def _measure(self, optimizer: Any, *_: Any) -> None:
        found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.sizes.append(float(self.size(torch.cat([gradient.flatten() for gradient in found]))))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for handle in self.handles:
            handle.remove()


def _clipped(trial: Trial, size: Callable[[torch.Tensor], torch.Tensor], **settings: Any) -> None:
    trial.holds(gradient_clip_val=_CLIP, **settings)
    probe = _Gradients(size)
    trial.fit([*trial.make(), probe], gradient_clip_val=_CLIP, **settings)
    sizes = probe.sizes
    trial.require(sizes and max(sizes) <= _CLIP * 1.001, f"gradients must be clipped to {_CLIP}, not be {sizes}.")
    trial.require(max(sizes) > _CLIP * 0.99, f"gradients must be clipped, not made smaller, but they are {sizes}.")


def _by_hand(*, optimizers: int) -> Methods:
    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            loss = step_of(user)(self, batch, batch_idx)
            chosen = [self.optimizers()] if optimizers == 1 else self.optimizers()
            for optimizer in chosen:
                optimizer.zero_grad()
            self.manual_backward(loss["loss"] if isinstance(loss, dict) else loss)
            for optimizer in chosen:
                optimizer.step()
            return loss

        def configure_optimizers(self: Any) -> Any:
            parameters = list(self.parameters())
            return [torch.optim.SGD(parameters[i::optimizers], lr=0.1, momentum=0.9) for i in range(optimizers)]

        given = {"training_step": training_step, "configure_optimizers": configure_optimizers}
        return {**given, "automatic_optimization": False}

    return methods


def _lbfgs(*, evaluations: int) -> Methods:
    def configure_optimizers(self: Any) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=evaluations, max_eval=evaluations)

    return lambda user: {"configure_optimizers": configure_optimizers}
