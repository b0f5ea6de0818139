"""Writes down what was found, for a terminal of 80 columns."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_objectives.inspection.facts import Facts
from lightning_objectives.inspection.verdicts import Verdict

WIDTH = 80
_COLUMN = 14


@dataclass(frozen=True)
class Inspection:
    """What callbacks find in a module; ``print`` shows it."""

    facts: Facts
    """What the engine finds in the step."""
    verdicts: tuple[Verdict, ...]
    """Whether each callback applies: those of the training first."""
    together: Verdict | None = None
    """Whether the callbacks of the training apply together; None if there are not several."""

    @property
    def applies(self) -> bool:
        """Whether each callback of the training applies as it is, and all of them together."""
        yours = [verdict for verdict in (*self.verdicts, self.together) if verdict is not None and verdict.yours]
        return all(verdict.applies and not verdict.settings for verdict in yours)

    def __str__(self) -> str:
        yours = [verdict for verdict in self.verdicts if verdict.yours]
        parts = [_facts(self.facts)]
        if yours:
            parts.append(["Your callbacks, each alone", *_verdicts(yours)])
        if self.together is not None:
            parts.append(["Your callbacks together", *_verdicts([self.together])])
        others = [verdict for verdict in self.verdicts if not verdict.yours]
        parts.append(["The other callbacks, each with one of its methods", *_verdicts(others)])
        return "\n\n".join("\n".join(part) for part in parts)

    def __repr__(self) -> str:
        return str(self)


def _facts(facts: Facts) -> list[str]:
    lines = [facts.module]
    criterion, head = facts.criterion, facts.head
    if isinstance(criterion, str):
        lines += _row("criterion", f"not found: {criterion}")
    else:
        options = "".join(f", {name}={value!r}" for name, value in criterion.options.items())
        called = f"{criterion.name} of {criterion.input} with {criterion.target}, {criterion.reduction}{options}"
        lines += _row("criterion", called)
        lines += _row("also called", criterion.others)
        lines += _row("problem", criterion.about)
        lines += _row("samples", criterion.samples)
    if isinstance(head, str):
        lines += _row("head", f"not found: {head}")
    else:
        lines += _row("head", f"{head.path} ({head.layer}), {head.features} to {head.logits}")
    if facts.settings:
        lines += _row("needs", f"{_said(facts.settings)}, said to each callback of the step")
    lines += _row("optimizer", facts.optimizers)
    lines += _row("BatchNorm", ", ".join(facts.batch_norms) or "none")
    lines += _row("compiled", ", ".join(path or "the module" for path in facts.compiled) or "nothing")
    return lines


def _row(name: str, values: str | Sequence[str]) -> Iterator[str]:
    for value in [values] if isinstance(values, str) else values:
        yield from _wrapped(value, f"  {name:{_COLUMN - 2}}", " " * _COLUMN)
        name = ""


def _verdicts(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        answer = "no" if not verdict.applies else "yes, if" if verdict.settings else "yes"
        told = f"you say {_said(verdict.settings)}. Without that: " if verdict.settings else ""
        yield from _wrapped(verdict.callback, f"  {answer:{_COLUMN - 2}}", " " * _COLUMN)
        if verdict.refusal:
            yield from _wrapped(f"{told}{verdict.refusal}", " " * _COLUMN, " " * _COLUMN)
        for warning in verdict.warnings:
            yield from _wrapped(f"It warns: {warning}", " " * _COLUMN, " " * _COLUMN)


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
