"""What the callbacks of the training step find in a module: its criterion, its head, and what else matters to them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_objectives._step.compiled import is_compiled
from lightning_objectives._step.look import Look, SeenCriterion, SeenHead
from lightning_objectives.inspection.trial import Outcome, Trials, lightning_of


@dataclass(frozen=True)
class Facts:
    """What is known of a module from one batch."""

    module: str
    """The name of its class."""
    criterion: SeenCriterion | str
    """The criterion, or why none is found."""
    head: SeenHead | str
    """The head, or why none is found."""
    optimizers: tuple[str, ...]
    """Each optimizer with the settings of its groups."""
    batch_norms: tuple[str, ...]
    """The paths of the BatchNorm layers."""
    compiled: tuple[str, ...]
    """The paths of what is compiled; empty for the module itself."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What a callback of the step must be told to find the criterion and the head, by the name of its setting."""


def facts_of(trials: Trials, plain: Outcome) -> Facts:
    """Look at one step.

    Args:
        trials: of the module.
        plain: a step of the module without callbacks.
    """
    module = plain.module
    settings: dict[str, Any] = {}
    criterion = _found(trials, "losses", settings, module)
    head: Any = "it is not looked for, because the criterion that would prove it is not found"
    if not isinstance(criterion, str):
        head = _found(trials, "features", settings, module)
    parts = [(path, part) for path, part in module.named_modules() if ".objective_" not in f".{path}"]
    return Facts(
        type(module).__name__,
        criterion,
        head,
        tuple(_groups(plain.groups)),
        tuple(path for path, part in parts if isinstance(part, _BatchNorm)),
        tuple(path for path, part in parts if is_compiled(part)),
        settings,
    )


def _found(trials: Trials, want: str, settings: dict[str, Any], module: Any) -> Any:
    """What a look at the step finds, or its refusal; if a name from the module helps, it is added to the settings."""
    refusal = ""
    for extra in ({}, *_candidates(want, module)):
        if extra and not any(f"{name}=" in refusal for name in extra):
            continue  # The refusal does not ask for it.
        look = Look(wants=(want,), **settings, **extra)
        error = trials.run([look]).error
        seen = look.seen_criterion if want == "losses" else look.seen_head
        if error is None and seen is not None:
            settings.update(extra)
            return seen
        said = words_of(error) or "the step of this batch did not come to it"
        refusal += f" {with_words(extra)}: {said}" if refusal and "criterion" in extra else "" if refusal else said
    return refusal


def _candidates(want: str, module: Any) -> Iterator[dict[str, Any]]:
    """Settings that may help if the engine does not find something by itself."""
    if want == "features":
        linears = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
        yield from ({"head": path} for path in linears[:-9:-1])
        return
    yield from ({"which": number} for number in range(3))
    named = [path for path, part in module.named_modules() if path and _is_loss(path.rpartition(".")[2], part)]
    lightning = dir(lightning_of(module).LightningModule)
    own = [name for name in dir(type(module)) if name not in lightning] + list(vars(module))
    named += [name for name in own if _is_loss(name, None) and callable(getattr(module, name, None))]
    yield from ({"criterion": path} for path in dict.fromkeys(named))


def with_words(settings: Mapping[str, Any]) -> str:
    """The beginning of a sentence about what happens with some settings."""
    return "With " + ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _is_loss(name: str, part: Any) -> bool:
    return bool(re.search("loss|criteri|objective", name.lower())) or type(part).__name__.endswith("Loss")


def words_of(error: Exception | None) -> str:
    """What an error says. A ``ValueError`` is a refusal, whose words are enough; of another, its type matters too."""
    if error is None:
        return ""
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _groups(groups: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    for number, (name, group) in enumerate(groups):
        count = sum(parameter.numel() for parameter in group["params"])
        settings = ", ".join(f"{n}={group[n]:g}" for n in ("lr", "momentum", "weight_decay") if n in group)
        yield f"{name}, group {number}: {count:,} weights, {settings}"
