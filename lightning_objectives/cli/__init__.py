"""The command ``lightning-objectives``: Lightning's own command line, and what this package knows of its methods."""

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from lightning_objectives import discovery
from lightning_objectives.cli.merging import export, merge


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: the words behind the program's name; None for those that it was called with.

    Raises:
        SystemExit: with the status 2 and a message, for a command or a setting that is none.

    Example:
        >>> main(["methods", "EMA"])
        averaging.EMA, placed by AverageWeights
        ...
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
    elif args[0] in COMMANDS:
        COMMANDS[args[0]](args)
    else:
        _stop(f"unknown command {args[0]!r}.", args[0], COMMANDS)


def _help() -> str:
    lines = ["usage: lightning-objectives COMMAND ..."]
    for command, names in groupby(COMMANDS, COMMANDS.__getitem__):
        lines += ["", f"  {', '.join(names)}", f"    {inspect.getdoc(command)}"]
    return "\n".join(lines)


def _stop(message: str, word: str = "", known: Sequence[str] | dict[str, Any] = ()) -> NoReturn:
    close = get_close_matches(word, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    names = f" Known: {', '.join(known)}." if known else ""
    print(f"lightning-objectives: {message}{hint}{names}", file=sys.stderr)
    raise SystemExit(2)


def _lightning(args: list[str]) -> None:
    """Run any module and data module, given by class_path, with Lightning's command line; --help tells more."""
    try:
        import_module("jsonargparse")
    except ModuleNotFoundError:
        _stop(f"{args[0]} needs jsonargparse: pip install 'lightning-objectives[cli]'.")
    from lightning_objectives._trainer.lightning import part

    # The user's own files, as with `python -m`: an installed command does not see them otherwise.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    part("cli").LightningCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        # Without a logger the directory is the same for every run, and Lightning's own file name, config.yaml, may be
        # that of the user: a name of its own can be overwritten.
        save_config_kwargs={"config_filename": "resolved-config.yaml", "overwrite": True},
        args=None if args == sys.argv[1:] else args,  # Lightning warns of args beside those of the command line
    )


def _methods(args: list[str]) -> None:
    """List all methods by kind; with a NAME, the whole card of one."""
    found = list(discovery.methods())
    if len(args) == 1:
        print("\n\n".join(_room(room, [cls for _, cls in group]) for room, group in groupby(found, lambda m: m[0])))
        return
    cards = [_card(room, cls) for room, cls in found if cls.__name__ == args[1]]
    if not cards or len(args) > 2:
        _stop(
            f"methods takes one name, not {' '.join(args[1:])!r}.", args[1], sorted({cls.__name__ for _, cls in found})
        )
    print("\n\n".join(cards))


def _room(room: str, methods: list[type[Any]]) -> str:
    lines = [_heading(room, methods[0])]
    for cls in methods:
        lines += textwrap.wrap(
            _plain(_doc(cls).split("\n\n")[0]), 110, initial_indent=f"  {cls.__name__}: ", subsequent_indent="    "
        )
        lines += [f"    {url}" for url in _paper(cls)]
        lines += [f"    {found}" for found in _evidence(cls)]
    return "\n".join(lines)


def _card(room: str, cls: type[Any]) -> str:
    head = "\n".join([_heading(f"{room}.{cls.__name__}", cls), *_evidence(cls)])
    own = f"{head}\n\n{cls.__name__}{inspect.signature(cls)}\n\n{_doc(cls)}"
    return own + "".join(f"\n\n{f.__name__}{inspect.signature(f)}\n\n{_doc(f)}" for f in _functions(cls))


def _heading(name: str, cls: type[Any]) -> str:
    callback = getattr(cls, "callback", "")
    return f"{name}, placed by {callback}" if callback else name


def _evidence(cls: type[Any]) -> list[str]:
    """What the benchmarks of this project found of a method, in a word; nothing where they have not tried it."""
    words: dict[str, str] = json.loads(files("lightning_objectives").joinpath("evidence.json").read_text("utf-8"))
    return [f"evidence: {words[cls.__name__]}"] if cls.__name__ in words else []


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def _functions(cls: type[Any]) -> list[Callable[..., Any]]:
    """The functions of its own file that a method's card points to, and that hold the rest of it."""
    file = vars(sys.modules[cls.__module__])
    return [file[name] for name in dict.fromkeys(re.findall(r":func:`(\w+)`", _doc(cls))) if name in file]


def _paper(cls: type[Any]) -> list[str]:
    """The first address behind ``Paper:``, in the method's card or its function's."""
    text = "\n\n".join(_doc(thing) for thing in (cls, *_functions(cls)))
    return re.findall(r"^Paper:(?:.|\n(?!\n))*?(https?://\S*[^\s.,;])", text, re.MULTILINE)[:1]


def _plain(text: str) -> str:
    """Without the marks of reStructuredText."""
    return re.sub(r"(?::\w+:)?`+([^`]*)`+", r"\1", text)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), _lightning),
    "methods": _methods,
    "merge": merge,
    "export": export,
}
"""What each command calls, with all the words from its own name on; its docstring is its help."""
