"""Makes the page of the conformance suite from the report of a run of its tests.

Run as ``python docs/conformance.py REPORT PAGE`` on pytest's JUnit file; with ``--check`` the page must already be what
the report says. It fails on a cell that no test has filled, and on a test that was skipped or failed.
"""

import argparse
import sys
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from lightning_objectives.discovery import methods
from lightning_objectives.testing.conformance import conditions, exemplars

INTRODUCTION = """# Conformance

What every plug-in keeps under everything that the Trainer does. Rows and conditions are found by walking the package;
a method that is added has its row with its file. Each cell is the outcome of a test, which the cell names when the
pointer rests on it. *refuses* means an error at setup, before any step, that gives the reason below the table.
`make conformance` fills the tables anew and fails where a cell is empty or a test is skipped; the same trainings run on
a callback or a method of your own by `lightning_objectives.testing.conformance.assert_conforms`.
"""
OTHER_FAMILIES = {
    "methods": "Each method: the laws of its kind, and what its callback keeps with it.",
    "ranks": "Several processes, over gloo on the CPU.",
    "pairs": "Two callbacks together, in either order.",
    "kills": "A training that is killed (SIGKILL) at drawn moments and resumed ends as one that ran through.",
}


class Cell(NamedTuple):
    """One outcome."""

    family: str
    row: str
    column: str
    outcome: str
    test: str


def cells(report: Path) -> list[Cell]:
    """What the tests of a report say; exits where one did not pass."""
    found, faults = [], []
    for case in ET.parse(report).iter("testcase"):
        # pytest writes tests/conformance/test_matrix.py as tests.conformance.test_matrix
        test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        said = [p.get("value", "") for p in case.iter("property") if p.get("name") == "cell"]
        bad = [kind for kind in ("skipped", "failure", "error") if case.find(kind) is not None]
        if bad and (said or "conformance" in test):
            faults.append(f"{test}: {bad[0]}")
        found += [Cell(*value.split("|", 3), test) for value in said]
    if faults:
        sys.exit("\n".join(["not passed:", *faults]))
    return found


def blanks(found: list[Cell]) -> list[str]:
    """The cells that no test has filled."""
    filled = {cell[:3] for cell in found}
    wanted = {(c.family, str(row), str(c)) for c in conditions() for row in exemplars()}
    for family in {cell.family for cell in found} - {"pairs"}:
        mine = [cell for cell in found if cell.family == family]
        wanted |= {(family, a.row, b.column) for a in mine for b in mine}
    wanted |= {("methods", cls.__name__, "laws") for _, cls in methods()}
    names = [str(row) for row in exemplars() if "together" not in str(row)]
    pairs = {("pairs", a, b) for i, a in enumerate(names) for b in names[i + 1 :]}
    turned = {(family, b, a) for family, a, b in filled}
    return sorted("|".join(cell) for cell in (wanted | pairs) - filled - turned)


def page(found: list[Cell]) -> str:
    """The page, in Markdown."""
    order = {c.family: f"{c.family}." for c in conditions()} | OTHER_FAMILIES
    known = {cell.family for cell in found}
    return "\n".join([INTRODUCTION, *(section(f, [c for c in found if c.family == f]) for f in order if f in known)])


def section(family: str, found: list[Cell]) -> str:
    """One family: its conditions, the table, and the reasons of what is refused."""
    meanings = {c.name: c.meaning for c in conditions() if c.family == family}
    if family in OTHER_FAMILIES:
        about = OTHER_FAMILIES[family]
    else:
        module = import_module(f"lightning_objectives.testing.conformance.conditions.{family}")
        about = (module.__doc__ or "").strip().splitlines()[0]
    rows = list(dict.fromkeys([str(row) for row in exemplars()])) if family not in ("methods", "pairs") else []
    rows = [row for row in rows if any(c.row == row for c in found)]
    rows += sorted({c.row for c in found} - set(rows))
    columns = [name for name in meanings if any(c.column == name for c in found)]
    columns += sorted({c.column for c in found} - set(columns))
    reasons: dict[str, int] = {}
    by_place = {(c.row, c.column): c for c in found}
    lines = [f"## {family.capitalize()}", "", about, ""]
    lines += [f"- *{words(name)}*: {meaning}" for name, meaning in meanings.items()]
    lines += ["", f"| | {' | '.join(words(c) for c in columns)} |", "|---|" + "---|" * len(columns)]
    for row in rows:
        lines.append(f"| {row} | " + " | ".join(shown(by_place.get((row, c)), reasons) for c in columns) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


def shown(cell: Cell | None, reasons: dict[str, int]) -> str:
    """A cell's text, with the test behind it."""
    if cell is None:
        return ""
    verdict, _, reason = cell.outcome.partition(": ")
    mark = "✓" if verdict == "pass" else verdict
    if reason:
        mark += f" ({reasons.setdefault(reason, len(reasons) + 1)})"
    return f'<abbr title="{cell.test}">{mark}</abbr>'


def words(name: str) -> str:
    """A function's name in words."""
    return name.replace("_", " ")


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    found = cells(args.report)
    if empty := blanks(found):
        sys.exit("\n".join(["no test fills:", *empty]))
    text = page(found)
    if args.check and args.page.read_text() != text:
        sys.exit(f"{args.page} is not what the tests say; make it anew: make conformance")
    args.page.write_text(text)
    print(f"{args.page}: {len(found)} cells, {sum(c.outcome != 'pass' for c in found)} of them refusals.")


if __name__ == "__main__":
    main()
