"""Tells what a configuration builds from what a program builds."""

import sys
from typing import Any


def is_built_from_config(instance: Any) -> bool:
    """Tell whether jsonargparse, the parser of Lightning's command line, is constructing an object at this moment.

    Call it in ``__init__`` or ``__post_init__``. It looks at who called the constructor, so an object that your own
    program builds does not count, even if jsonargparse called your program.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_locals.get("self") is instance:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "jsonargparse"
