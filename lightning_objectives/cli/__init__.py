"""The command ``lightning-objectives``: runs Lightning's command line, and shows, merges and exports.

Each command imports what it needs when it runs, because torch and Lightning take seconds that ``--help`` should not.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from itertools import groupby

import lightning_objectives
from lightning_objectives.cli.errors import stop
from lightning_objectives.cli.examples import init
from lightning_objectives.cli.lightning import run_lightning, show_inspection, show_plan
from lightning_objectives.cli.merging import ema, export, merge
from lightning_objectives.cli.methods import show_methods
from lightning_objectives.cli.text import indented

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), run_lightning),
    "inspect": show_inspection,
    "plan": show_plan,
    "init": init,
    "methods": show_methods,
    "merge": merge,
    "export": export,
    "ema": ema,
}
"""The function behind each command. It gets all the words from its own name on, and its docstring is its help."""

INTERRUPTED = 130
"""The status after Ctrl-C, as shells have it: 128 and the number of the signal."""


STATUS = (
    "Exit status: 0 if all went well; 1 if a training failed, or a callback of the CONFIG does not apply (inspect, "
    f"plan); 2 if a word, a setting or a file is wrong; {INTERRUPTED} after Ctrl-C."
)
"""What the exit status of the command means."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: the words behind the program's name; by default those that the program was called with.

    Raises:
        SystemExit: with a status other than 0; :data:`STATUS` says which.

    Example:
        >>> main(["methods", "EMA"])
        averaging.EMA, placed by AverageWeights
        ...
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
    elif args[0] == "--version":
        print(f"lightning-objectives {lightning_objectives.__version__}")
    elif args[0] in COMMANDS:
        try:
            COMMANDS[args[0]](args)
        except KeyboardInterrupt:
            print(f"\nlightning-objectives: {args[0]} was interrupted.", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:  # The reader has enough, as in `methods | head`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        stop(f"unknown command {args[0]!r}.", args[0], COMMANDS)


def _help() -> str:
    lines = ["usage: lightning-objectives COMMAND ...", "       lightning-objectives --version"]
    for command, names in groupby(COMMANDS, COMMANDS.__getitem__):
        purpose = " ".join((inspect.getdoc(command) or "").partition("\n\n")[0].split())
        lines += ["", f"  {', '.join(names)}", *indented(purpose, "    ", "    ")]
    return "\n".join([*lines, "", *indented(STATUS), "", "Add --help to a command to see its options."])
