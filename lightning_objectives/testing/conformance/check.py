"""What every training with a plug-in keeps, and what a condition is."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_objectives.testing.conformance.case import Case, Losses, Outcome, Run, hooks_of
from lightning_objectives.testing.conformance.memory import Memory
from lightning_objectives.testing.conformance.plug_ins import PlugIn

Result = TypeVar("Result")
REFUSALS = (ValueError, TypeError, NotImplementedError)


@dataclass
class Trial:
    """A plug-in under trial.

    Args:
        plug_in: the row.
        case: what is trained.
        memory: shared by trials, so that they train only once what they have in common.
    """

    plug_in: PlugIn
    case: Case = field(default_factory=Case)
    memory: Memory = field(default_factory=Memory, repr=False)

    def make(self) -> list[Any]:
        """New callbacks."""
        return list(self.plug_in.make(self.case))

    def fit(self, callbacks: list[Any] | None = None, **settings: Any) -> Run:
        """A training with the plug-in (or other callbacks), after which the module is as it was found."""
        module = settings.pop("module", self.case.module)
        if not isinstance(module, nn.Module):
            torch.manual_seed(settings.get("seed", 0))
            module = module()
        before = shape_of(module)
        run = self.case.fit(self.make() if callbacks is None else callbacks, module=module, **settings)
        self.require_as_found(module, before)
        at_first = next(c.hooks for c in run.trainer.callbacks if isinstance(c, Losses))
        hooks = hooks_of(run.trainer.optimizers)
        self.require(hooks == at_first, f"it must take its hooks off the optimizers: before {at_first}, after {hooks}.")
        return run

    def plain(self, *beside: Callable[[], Any], **settings: Any) -> Outcome:
        """The same training without it, with other callbacks beside it; remembered."""

        def train() -> Outcome:
            return self.fit([make() for make in beside], **settings).outcome

        return self.once(train, "plain", beside, settings)

    def usual(self, *beside: Callable[[], Any], **settings: Any) -> Outcome:
        """The training with it, for comparisons with another one; remembered."""

        def train() -> Outcome:
            return self.fit([*self.make(), *(make() for make in beside)], **settings).outcome

        plug_in = (type(self.plug_in), self.plug_in.name, self.plug_in.make)
        return self.once(train, "usual", plug_in, dict(self.case.settings), beside, settings)

    def once(self, train: Callable[[], Result], *depends: Any) -> Result:
        """The result of a training that depends on the module and data of the case, and on what is named here."""
        case = self.case
        if type(case) is not Case or vars(case).keys() - Case.__dataclass_fields__.keys():
            return train()  # a subclass, or a method that was replaced
        return self.memory.once(train, key=(case.module, case.data, case.batch_size, *depends))

    def idle(self, **settings: Any) -> Run:
        """The same training with it at zero strength."""
        return self.fit(list(self.plug_in.idle(self.case)), **settings)

    def require(self, holds: Any, sentence: str) -> None:
        """Raise an AssertionError that names the plug-in, unless it holds."""
        if not holds:
            raise AssertionError(f"{self.plug_in}: {sentence}")

    def require_same(self, a: Run | Outcome, b: Run | Outcome, sentence: str) -> None:
        """The weights, and the losses on the way, are the same to the bit."""
        other = differing(a.weights, b.weights)
        self.require(not other, f"{sentence} The weights differ in {other}.")
        self.require(_same_losses(a.losses, b.losses), f"{sentence} The losses differ: {a.losses} and {b.losses}.")

    def require_as_found(self, module: nn.Module, before: dict[str, Any]) -> None:
        """The module has what it had: children, attributes, hooks, parameters, keys."""
        after = shape_of(module)
        other = {name: (before.get(name), now) for name, now in after.items() if before.get(name) != now}
        other |= {name: (was, None) for name, was in before.items() if name not in after}
        self.require(not other, f"it must give the module back as it was, but (before, after): {other}")

    def require_to_act(self, plain: Run | Outcome, run: Run | Outcome) -> None:
        """It did something, and left the training alone if it says so."""
        if self.plug_in.leaves_training_alone(self.case):
            same = _same_losses(plain.losses, run.losses)
            self.require(same, f"it must leave the training alone, but the losses are {run.losses}, not {plain.losses}")
        else:
            acted = differing(plain.weights, run.weights)
            self.require(acted, "it must change the training, but the weights are those of the one without it.")

    def require_finite(self, run: Run) -> None:
        """No weight is infinite or NaN."""
        wild = [n for n, v in run.weights.items() if v.is_floating_point() and not bool(v.isfinite().all())]
        self.require(not wild, f"the weights must stay finite, but {wild} are not.")

    def holds(
        self,
        *beside: Callable[[], Any],
        options: Mapping[str, Any] | None = None,
        acts: bool = True,
        twice: bool = False,
        **settings: Any,
    ) -> tuple[Outcome, Run]:
        """The laws of every training, under these settings of the Trainer and the case.

        Zero strength is the training without it, to the bit; otherwise it acts, and leaves finite weights.

        Args:
            beside: make other callbacks, which stand behind it.
            options: attributes for the callbacks that have them.
            acts: whether it must change the training, unless it says that it does not.
            twice: whether a second training must be equal to the first.
            settings: of the Trainer and the case.

        Returns:
            the training without the plug-in, and the one with it.
        """

        def fit(callbacks: list[Any]) -> Run:
            return self.fit([*told(callbacks, options), *(make() for make in beside)], **settings)

        plain, run = self.plain(*beside, **settings), fit(self.make())
        idle = fit(list(self.plug_in.idle(self.case)))
        self.require_same(plain, idle, "at zero strength it must be the training without it.")
        if acts or self.plug_in.leaves_training_alone(self.case):
            self.require_to_act(plain, run)
        self.require_finite(run)
        if twice:
            self.require_same(run, fit(self.make()), "two equal trainings must be equal.")
        return plain, run


def told(callbacks: list[Any], options: Mapping[str, Any] | None) -> list[Any]:
    """The callbacks that have these options, with them."""
    for callback in callbacks:
        for name, value in (options or {}).items():
            if hasattr(callback, name):
                setattr(callback, name, value)
    return callbacks


@dataclass(frozen=True)
class Condition:
    """A column of the table.

    Args:
        family: of the conditions that are shown together.
        check: raises an AssertionError where the trial fails, and returns what a pass deserves to be told with, if
            anything; its name is the column's.
    """

    family: str
    check: Callable[[Trial], str | None]

    @property
    def name(self) -> str:
        """Of the column, and of the declaration that it is not supported."""
        return self.check.__name__

    @property
    def meaning(self) -> str:
        """In one line."""
        return (self.check.__doc__ or "").strip().splitlines()[0]

    def __str__(self) -> str:
        return self.name


def outcome(condition: Condition, trial: Trial) -> str:
    """``pass``, what the condition says in its place, or ``refuses: `` and the reason.

    Raises:
        AssertionError: it does not hold, or what is declared unsupported is not refused, at setup and with the reason.
    """
    why = trial.plug_in.unsupported(trial.case).get(condition.name)
    if why is None:
        return _tried(condition, trial) or "pass"
    try:
        _tried(condition, trial)
    except REFUSALS as error:
        said = next((reason for reason in why if reason in str(error)), None)
        reasons = " or ".join(map(repr, why))
        trial.require(said, f"it must refuse {condition.name} with its reason {reasons}, not {str(error)!r}.")
        taken = trial.case.trainers[-1].global_step
        trial.require(taken == 0, f"it must refuse {condition.name} at setup, not after {taken} steps.")
        return f"refuses: {said}"
    raise AssertionError(f"{trial.plug_in}: it says that it does not support {condition.name} ({why[0]}), but ran.")


def _tried(condition: Condition, trial: Trial) -> str | None:
    with warnings.catch_warnings():
        # Conditions are odd trainings on purpose, of which Lightning and the callbacks warn as they should.
        warnings.simplefilter("ignore", UserWarning)
        return condition.check(trial)


_LIGHTNING = {"_trainer", "_fabric", "_hparams", "_hparams_initial", "_hparams_name", "_log_hyperparams"}
_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name]


def shape_of(module: nn.Module) -> dict[str, Any]:
    """What a module is made of, without the values of its tensors."""
    found: dict[str, Any] = {"keys": list(module.state_dict())}
    for path, part in module.named_modules():
        own = vars(part)
        found[f"{path}: class"] = type(part).__name__
        found[f"{path}: attributes"] = sorted(own.keys() - _LIGHTNING)
        found[f"{path}: children"] = list(part._modules)
        found[f"{path}: hooks"] = {name: len(own[name]) for name in _HOOKS if name in own}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found[f"{name}: parameter"] = (id(parameter), parameter.requires_grad)
    return found


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names whose values are not the same to the bit."""
    if a.keys() != b.keys():
        return sorted(a.keys() ^ b.keys())
    return [name for name in a if not _same(a[name], b[name])]


def _same(a: Any, b: Any) -> bool:
    """Equal, where a NaN is equal to another NaN at the same place."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return isinstance(a, Tensor) == isinstance(b, Tensor) and bool(a == b or (a != a and b != b))


def _same_losses(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(_same, a, b))
