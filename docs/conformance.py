"""Makes the page of the conformance suite from the report of a run of its tests.

Run as ``python docs/conformance.py REPORT PAGE`` on pytest's JUnit file. It fails on a cell that no test has filled,
and on a test that was skipped or failed; without a PAGE that is all.
"""

import argparse
import sys
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from lightning_objectives.discovery import methods
from lightning_objectives.kinds import Method
from lightning_objectives.testing.conformance import conditions, exemplars

INTRODUCTION = """# Conformance

What every plug-in keeps under everything that the Trainer does. Rows and conditions are found by walking the package;
a method that is added has its row with its file. Each cell is the outcome of a test, which the cell names when the
pointer rests on it. *refuses* means an error at setup, before any step, that gives the reason below the table.
*waits* means that it passes, but waits for the device where the reason says so; a GPU that is not there counts the
waits, and real ones are not part of the tests. `make conformance` fills the tables anew and fails where a cell is empty
or a test is skipped; the same trainings run on a callback or a method of your own by
`lightning_objectives.testing.conformance.assert_conforms`.
"""
OTHER_FAMILIES = {
    "methods": "Each method: the laws of its kind, and what its callback keeps with it.",
    "ranks": "Several processes, over gloo on the CPU.",
    "pairs": "Two callbacks together, in either order.",
    "kills": "A training that is killed (SIGKILL) at drawn moments and resumed ends as one that ran through.",
}


GROUPS = {
    "": "",
    "methods": "The methods, each under its callback",
    "library": "Metrics and schedules, which no callback places",
    "files": "Methods that work on files after a training",
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
    return sorted(found, key=lambda cell: cell.test)


def blanks(found: list[Cell]) -> list[str]:
    """The cells that no test has filled."""
    filled = {cell[:3] for cell in found}
    wanted = {(c.family, str(row), str(c)) for c in conditions() for row in exemplars()}
    for mine in sections(found).values():
        wanted |= {(a.family, a.row, b.column) for a in mine for b in mine if a.family != "pairs"}
    wanted |= {("methods", cls.__name__, "laws") for _, cls in methods()}
    names = [str(row) for row in exemplars() if "together" not in str(row)]
    pairs = {("pairs", a, b) for i, a in enumerate(names) for b in names[i + 1 :]}
    turned = {(family, b, a) for family, a, b in filled}
    return sorted("|".join(cell) for cell in (wanted | pairs) - filled - turned)


def sections(found: list[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """The cells of each family, those of callbacks, methods and others apart: they have conditions of their own."""
    callbacks = {str(row) for row in exemplars()}
    groups = {cls.__name__: group_of(cls) for _, cls in methods()}
    apart: dict[tuple[str, str], list[Cell]] = {}
    for cell in found:
        of_callbacks = cell.row in callbacks or cell.family == "pairs"
        apart.setdefault((cell.family, "" if of_callbacks else groups.get(cell.row, "methods")), []).append(cell)
    return apart


def group_of(cls: type) -> str:
    """The table of a method."""
    if not issubclass(cls, Method):
        return "library"
    return "methods" if cls.callback else "files"


def page(found: list[Cell]) -> str:
    """The page, in Markdown."""
    order = {c.family: f"{c.family}." for c in conditions()} | OTHER_FAMILIES
    apart = sections(found)
    if unknown := {family for family, _ in apart} - order.keys():
        sys.exit(f"no section is for the cells of {sorted(unknown)}.")
    parts = [INTRODUCTION]
    for family in order:
        groups = [group for group in GROUPS if (family, group) in apart]
        parts += [f"## {family.capitalize()}", "", about(family), *meanings(family)]
        for group in groups:
            parts += ["", *([f"{GROUPS[group]}:", ""] if GROUPS[group] else []), table(family, apart[family, group])]
    return "\n".join(parts)


def about(family: str) -> str:
    """What a family is, in a sentence."""
    if family in OTHER_FAMILIES:
        return OTHER_FAMILIES[family]
    module = import_module(f"lightning_objectives.testing.conformance.conditions.{family}")
    return (module.__doc__ or "").strip().splitlines()[0]


def meanings(family: str) -> list[str]:
    """Each condition of a family, in a line."""
    mine = [c for c in conditions() if c.family == family]
    return ["", *(f"- *{words(c.name)}*: {c.meaning}" for c in mine)] if mine else []


def table(family: str, found: list[Cell]) -> str:
    """The rows and columns, and the reasons of what is refused or differs."""
    names = [str(row) for row in exemplars()]
    rows = sorted({c.row for c in found}, key=lambda row: (names.index(row) if row in names else len(names), row))
    known = [c.name for c in conditions() if c.family == family]
    columns = sorted({c.column for c in found}, key=lambda c: (known.index(c) if c in known else len(known), c))
    reasons: dict[str, int] = {}
    by_place: dict[tuple[str, str], list[Cell]] = {}
    for cell in found:
        by_place.setdefault((cell.row, cell.column), []).append(cell)
    lines = [f"| | {' | '.join(words(c) for c in columns)} |", "|---|" + "---|" * len(columns)]
    for row in rows:
        lines.append(f"| {row} | " + " | ".join(shown(by_place.get((row, c), []), reasons) for c in columns) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


def shown(cells: list[Cell], reasons: dict[str, int]) -> str:
    """A cell's text, with the tests behind it; empty where a pair stands on the other side of the diagonal."""
    if not cells:
        return ""
    cell, more = cells[0], f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    verdict, _, reason = cell.outcome.partition(": ")
    mark = "✓" if verdict == "pass" else verdict
    if reason:
        mark += f" ({reasons.setdefault(reason, len(reasons) + 1)})"
    return f'<abbr title="{cell.test}{more}">{mark}</abbr>'


def words(name: str) -> str:
    """A function's name in words."""
    return name.replace("_", " ")


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    args = parser.parse_args()
    found = cells(args.report)
    if empty := blanks(found):
        sys.exit("\n".join(["no test fills:", *empty]))
    if args.page is not None:
        args.page.write_text(page(found))
    print(f"{len(found)} cells, {sum(c.outcome != 'pass' for c in found)} of them no plain pass.")


if __name__ == "__main__":
    main()
