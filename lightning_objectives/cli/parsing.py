"""Says in a sentence what is wrong with a configuration, in place of jsonargparse's page of usage."""

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from typing import Any

from lightning_objectives._trainer.lightning import part
from lightning_objectives.cli.classes import names
from lightning_objectives.cli.errors import did_you_mean, stop

_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_UNKNOWN_SETTING = re.compile(r"Problem with given class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
_UNKNOWN_KEY = re.compile(r"Subcommand '\w+' does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)")
_VALUE = re.compile(r"Parser key \"(\w+)\":\s+(Expected a .*?\. Got value: .*)")


def helpful(fit: Callable[..., None] | None = None) -> Callable[..., Any]:
    """Lightning's command line, which says in a sentence what is wrong with a configuration.

    Args:
        fit: runs in place of ``Trainer.fit``.
    """
    parsers: list[Any] = []
    base: Any = part("cli").LightningCLI

    def error(message: str, ex: Exception | None = None) -> None:
        options = [option for parser in parsers for action in parser._actions for option in action.option_strings]
        stop(explained(message, [option.lstrip("-") for option in options], names()))

    class CLI(base):  # type: ignore[misc]  # Lightning's, under one of its two names
        """Lightning's command line."""

        def init_parser(self, **kwargs: Any) -> Any:
            parser = super().init_parser(**kwargs)
            parser.error = error
            parsers.append(parser)
            return parser

        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except ValueError as refusal:
                said = refused(refusal)
                if said is None:
                    raise
                stop(said)

    if fit is not None:
        CLI.fit = fit
    return CLI


def explained(message: str, keys: Collection[str], classes: Collection[str]) -> str:
    """What is wrong, and what was perhaps meant; the message as it is if it says something else.

    Args:
        message: jsonargparse's.
        keys: the options of the command, without dashes.
        classes: the names of classes that need no path.

    >>> explained("unrecognized arguments: --trainer.max_stepz=3", ["trainer.max_steps", "model"], [])
    "there is no option 'trainer.max_stepz'. Did you mean 'trainer.max_steps'?"
    """
    key = re.match(r'Parser key "([\w.]+)":', message)
    where = f"{key[1]}: " if key else ""
    if found := _UNKNOWN_CLASS.search(message):
        return f"{where}{_class(found[1], classes)}"
    if found := _NO_ATTRIBUTE.search(message):
        return f"{where}{found[1]} has no {found[2]!r}.{did_you_mean(found[2], dir(import_module(found[1])))}"
    if found := _UNKNOWN_SETTING.search(message):  # The first class is the innermost that was named.
        known = list(_settings(found[1]))
        return (
            f"{where}{found[1].rpartition('.')[2]} has no setting {found[2]!r}.{did_you_mean(found[2], known)} "
            f"Its settings: {', '.join(known) or 'none'}."
        )
    if found := _UNKNOWN_KEY.search(message):
        name = found[1] or found[2]
        return f"there is no option {name!r}.{did_you_mean(name, keys)}"
    values = _VALUE.findall(message)
    if values and values[-1][0] not in where:
        return f"{where}{values[-1][0]}: {values[-1][1]}"
    return message


def _class(name: str, classes: Collection[str]) -> str:
    if name in classes:
        return f"{name} is a class of lightning_objectives, but not of the kind that is needed here."
    return (
        f"there is no class {name!r}.{did_you_mean(name, classes)} Your own need their path, as package.module.Class."
    )


def _settings(path: str) -> Iterator[str]:
    """The names of a class's settings."""
    module, _, name = path.rpartition(".")
    cls: Any = getattr(import_module(module), name)
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield parameter.name


def refused(error: ValueError) -> str | None:
    """What a class said of its settings when it was built from a configuration; None if it was something else.

    jsonargparse wraps that into a list of all types that the value might have had.
    """
    lines = re.findall(r"^  - (.*(?:\n    (?! *-).*)*)", str(error), re.MULTILINE)
    said = [line for line in lines if not line.startswith(("Expected a", "Not a valid", "Problem with"))]
    return re.sub(r"\s*\n\s*", " ", said[0]) if said and "Does not validate" in str(error) else None
