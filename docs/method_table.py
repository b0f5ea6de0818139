"""The README's table of all methods, by room and family: ``python -m docs.method_table`` writes it."""

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from lightning_objectives.discovery import methods

BEGIN, END = "<!-- methods: written by python -m docs.method_table -->", "<!-- end of methods -->"
KINDS = {
    "batches": "batch transforms",
    "surgery": "changes of layers",
    "heads": "heads",
    "losses": "losses",
    "weighting": "weightings",
    "distillation": "distances to a teacher",
    "regularizers": "added terms",
    "combination": "combinations of tasks and terms",
    "perturbations": "perturbations of the weights",
    "gradients": "gradient transforms",
    "schedules": "learning rate schedules, torch's own kind",
    "averaging": "averages of the weights",
    "merging": "merges of files",
    "calibration": "calibrators",
    "prediction_sets": "prediction sets",
    "adaptation": "adapters to test data",
    "surveys": "surveys of the data",
    "metrics": "metrics",
}
"""What the methods of each room are."""
CALLBACKS = {"metrics": "LogMetrics"}
"""Of rooms whose classes are another library's kind."""
BY_FAMILY = ("losses", "weighting", "regularizers")
"""The rooms of so many methods that each family has a row of its own."""


def table() -> str:
    """One row for each room, or for each family of a large one."""
    lines = ["| Kind, and its callback | For | Methods |", "| --- | --- | --- |"]
    found = sorted(methods(), key=lambda method: (list(KINDS).index(method[0]), _family(method), method[1].__name__))
    for (room, family), group in groupby(found, key=lambda method: (method[0], _family(method))):
        classes = [cls for _, cls in group]
        callback = next((cls.callback for cls in classes if getattr(cls, "callback", "")), CALLBACKS.get(room, ""))
        kind = f"{KINDS[room]}, `{callback}`" if callback else KINDS[room]
        lines.append(f"| {kind} | {family} | {', '.join(f'`{cls.__name__}`' for cls in classes)} |")
    return "\n".join(lines)


def _family(method: tuple[str, Any]) -> str:
    room, cls = method
    return str(cls.family) if room in BY_FAMILY else ""


def in_readme(readme: str) -> str:
    """The text of the README with the table as it is now."""
    made = f"{BEGIN}\n\n{table()}\n\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "README.md"
    path.write_text(in_readme(path.read_text()))
