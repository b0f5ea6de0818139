"""The commands that read a configuration of Lightning's command line."""

import inspect
import io
import logging
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning_objectives.cli.errors import stop
from lightning_objectives.cli.text import help_text, readable


def run_lightning(args: list[str]) -> None:
    """Train or evaluate any module and data module with Lightning's command line.

    Classes of this package need no path: --trainer.callbacks+=EMACallback, and in YAML class_path: BEMA.
    """
    _start(args, args[0])


def show_inspection(args: list[str]) -> None:
    """Show what callbacks find in the module of a CONFIG, and which of them apply.

    One batch goes through a training step for each callback: those of the config, and the others with one of their
    methods. Nothing is trained or written.
    """

    def show(model: Any, datamodule: Any, trainer: Any) -> None:
        from lightning_objectives.inspection import inspect

        found = inspect(model, datamodule, trainer)
        print(found)
        if not found.applies:
            raise SystemExit(1)

    _instead_of_fit(args, show)


def show_plan(args: list[str]) -> None:
    """Show what the callbacks of a CONFIG would be plugged into, without training."""

    def show(model: Any, datamodule: Any, trainer: Any) -> None:
        from lightning_objectives.inspection import plan

        try:
            print(plan(model, datamodule, trainer))
        except ValueError as error:
            print(f"lightning-objectives: {error}", file=sys.stderr)
            raise SystemExit(1) from error

    _instead_of_fit(args, show)


def _instead_of_fit(args: list[str], show: Callable[..., None]) -> None:
    """Build everything as ``fit`` does, and show it in place of a training."""
    command, words = args[0], args[1:]
    if not words or {"-h", "--help"} & {*words}:
        text = readable(inspect.getdoc(show_inspection if command == "inspect" else show_plan) or "")
        print(f"usage: lightning-objectives {command} CONFIG [CONFIG ...] [options of fit]\n\n{text}")
        return
    configs = list(takewhile(lambda word: not word.startswith("-"), words))
    fit = ["fit", *(f"--config={config}" for config in configs), *words[len(configs) :]]

    def instead(cli: Any, model: Any, datamodule: Any = None, **_: Any) -> None:
        show(model, datamodule, cli.trainer)

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # What Lightning tells of its devices is not what was asked for.
    try:
        _start(fit, command, fit=instead, save_config_callback=None)
    finally:
        logging.disable(disabled)


def _start(args: list[str], command: str, fit: Callable[..., None] | None = None, **settings: Any) -> None:
    """Start Lightning's command line.

    Args:
        args: the words, from the command on.
        command: what the user called, for messages.
        fit: runs in place of ``Trainer.fit``.
        settings: for LightningCLI.
    """
    if sys.modules.get("jsonargparse", find_spec("jsonargparse")) is None:
        stop(f"{command} needs jsonargparse: pip install 'lightning-objectives[cli]'.")
    from lightning_objectives.cli.classes import import_all
    from lightning_objectives.cli.parsing import helpful

    # The user's own files, as with `python -m`: an installed command does not see them otherwise.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    import_all()
    defaults: dict[str, Any] = {
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        # Without a logger the directory is the same for every run, and Lightning's own file name, config.yaml, may be
        # that of the user: a name of its own can be overwritten.
        "save_config_kwargs": {"config_filename": "resolved-config.yaml", "overwrite": True},
        "args": None if args == sys.argv[1:] else args,  # Lightning warns of args beside those of the command line
    }
    start = partial(helpful(fit), **{**defaults, **settings})
    try:
        if any(word in ("-h", "--help") or re.search(r"\.help(=|$)", word) for word in args):
            _show_help(start)
        else:
            start()
    except SystemExit as error:  # Lightning makes it of Ctrl-C.
        raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None


def _show_help(start: Callable[[], Any]) -> None:
    """Print what the parser prints, without the marks and the formulas of docstrings."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            start()
    finally:
        print(help_text(text.getvalue()), end="")
