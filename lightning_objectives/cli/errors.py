"""Ends the program with a message that says what is wrong and what there is instead."""

import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import NoReturn


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the closest of the known words, if one is close.

    >>> did_you_mean("densty", ["density", "scale"]), did_you_mean("x", ["density"])
    (" Did you mean 'density'?", '')
    """
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def stop(message: str, word: str = "", known: Collection[str] = ()) -> NoReturn:
    """Print the message to the standard error and exit with the status 2.

    Args:
        message: what is wrong.
        word: what the user wrote; the closest of the known words is suggested.
        known: the words that would be right.

    Raises:
        SystemExit: always.
    """
    names = f" Known: {', '.join(known)}." if known else ""
    print(f"lightning-objectives: {message}{did_you_mean(word, known)}{names}", file=sys.stderr)
    raise SystemExit(2)
