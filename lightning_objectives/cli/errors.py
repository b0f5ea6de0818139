"""Ends the program with a message that says what is wrong and what there is instead."""

import sys
from collections.abc import Collection
from difflib import get_close_matches
from typing import NoReturn


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
    print(f"lightning-objectives: {message}{closest(word, known)}{names}", file=sys.stderr)
    raise SystemExit(2)


def closest(word: str, known: Collection[str]) -> str:
    """The question whether the closest of the known words was meant; empty if none is close.

    >>> closest("EMACalback", ["EMACallback", "LogMetrics"]), closest("EMACalback", [])
    (" Did you mean 'EMACallback'?", '')
    """
    close = get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
