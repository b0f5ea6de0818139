"""Tells things of one name apart by numbers."""

import re
from collections.abc import Container


def numbered(name: str, used: Container[str]) -> str:
    """Return the name, or the next numbered one if the name is in use.

    >>> numbered("ema", ["raw"]), numbered("top1", ["top1"]), numbered("ema_2", ["ema", "ema_2"])
    ('ema', 'top1_2', 'ema_3')
    """
    base, number, candidate = re.sub(r"_\d+$", "", name), 2, name
    while candidate in used:
        candidate, number = f"{base}_{number}", number + 1
    return candidate
