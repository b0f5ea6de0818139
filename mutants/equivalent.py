"""Faults that no test can see, since the library does the same with them, each with the reason."""

EQUIVALENT: dict[tuple[str, str, str, str], str] = {}
"""By file, function, and the statement before and after."""
