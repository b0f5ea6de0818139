"""The command ``methods``: a list of all methods, or the whole card of one."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

from lightning_objectives.cli.errors import stop
from lightning_objectives.cli.text import indented, readable


def show_methods(args: list[str]) -> None:
    """List all methods by kind; with the NAME of a method, show everything about it.

    --for WORDS lists the methods for a problem, such as --for "label noise" or --for imbalance.
    """
    if args[1:] in (["-h"], ["--help"]):
        print(f"usage: lightning-objectives methods [NAME | --for WORDS]\n\n{readable(_doc(show_methods))}")
        return
    from lightning_objectives.discovery import methods  # here, because it loads torch

    known = list(methods())
    by_problem = len(args) > 1 and args[1].partition("=")[0] == "--for"
    if by_problem:
        known = _fitting(known, " ".join([args[1].partition("=")[2], *args[2:]]).strip())
    if len(args) == 1 or by_problem:
        print("\n\n".join(_room(room, [cls for _, cls in group]) for room, group in groupby(known, lambda m: m[0])))
        return
    cards = [_card(room, cls) for room, cls in known if cls.__name__ == args[1]]
    if not cards or len(args) > 2:
        names = sorted({cls.__name__ for _, cls in known})
        stop(f"methods takes the name of one method, not {' '.join(args[1:])!r}.", args[1], names)
    print("\n\n".join(cards))


def _fitting(known: Sequence[tuple[str, type[Any]]], words: str) -> list[tuple[str, type[Any]]]:
    """The methods whose family, first sentence or advice on when to use them has all of the words, or else the most."""
    sought = [_stem(word) for word in re.findall(r"[a-z0-9]+", words.lower())]
    if not sought:
        stop('methods --for needs a problem: --for "label noise".')

    def matches(cls: type[Any]) -> int:
        doc = _doc(cls)
        advice = re.findall(r"^When to use:(?:.|\n(?!\n|[A-Z]\w*:))*", doc, re.MULTILINE)
        text = " ".join([getattr(cls, "family", ""), doc.split("\n\n")[0], *advice]).lower()
        return sum(re.search(rf"\b{word}", text) is not None for word in sought)

    counts = [matches(cls) for _, cls in known]
    if not any(counts):
        families = sorted({family for _, cls in known if (family := getattr(cls, "family", ""))})
        stop(f"no method says that it is for {words!r}.", words, families)
    return [method for method, count in zip(known, counts) if count == max(counts)]


def _stem(word: str) -> str:
    """What a word shares with its other forms.

    >>> _stem("tuning"), _stem("overfitting"), _stem("labels")
    ('tun', 'overfit', 'label')
    """
    return re.sub(r"(.)\1$", r"\1", re.sub(r"(ing|es|e|s)$", "", word))


def _room(room: str, methods: list[type[Any]]) -> str:
    lines = [_heading(room, methods[0])]
    for cls in methods:
        summary = readable(" ".join(_doc(cls).split("\n\n")[0].split()))
        lines += indented(f"{cls.__name__}: {summary}", "  ", "    ")
        lines += [f"    {line}" for line in (*paper(cls), *_evidence(cls))]
    return "\n".join(lines)


def _card(room: str, cls: type[Any]) -> str:
    head = "\n".join([_heading(f"{room}.{cls.__name__}", cls), *_evidence(cls)])
    things: list[Callable[..., Any]] = [cls, *_functions(cls)]
    return "\n\n".join([head, *(f"{_signature(thing)}\n\n{readable(_doc(thing))}" for thing in things)])


def _signature(thing: Callable[..., Any]) -> str:
    return "\n".join(indented(f"{thing.__name__}{inspect.signature(thing)}", "", "    "))


def _heading(name: str, cls: type[Any]) -> str:
    callback = getattr(cls, "callback", "")
    return f"{name}, placed by {callback}" if callback else name


def _evidence(cls: type[Any]) -> list[str]:
    """The verdict of this project's benchmarks on a method, in a word; none if they have not tried it."""
    verdicts: dict[str, str] = json.loads(files("lightning_objectives").joinpath("evidence.json").read_text("utf-8"))
    return [f"evidence: {verdicts[cls.__name__]}"] if cls.__name__ in verdicts else []


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def _functions(cls: type[Any]) -> list[Callable[..., Any]]:
    """The functions in a method's own file that its docstring refers to; they hold the rest of its card."""
    file = vars(sys.modules[cls.__module__])
    return [file[name] for name in dict.fromkeys(re.findall(r":func:`(\w+)`", _doc(cls))) if name in file]


def paper(cls: type[Any]) -> list[str]:
    """The first address behind ``Paper:`` in the docstring of a method or of its functions; none without one."""
    text = "\n\n".join(_doc(thing) for thing in (cls, *_functions(cls)))
    return re.findall(r"^Paper:(?:.|\n(?!\n))*?(https?://\S*[^\s.,;])", text, re.MULTILINE)[:1]
