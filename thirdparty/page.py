"""The page of the documentation, out of the records."""

import json
import re
import textwrap
from importlib import import_module
from typing import Any

from thirdparty.environments import PACKAGES, RECORDS, ROOT

PAGE = ROOT / "docs" / "third_party.md"
TOLERANCE = 1e-6
TOGETHER = "all that work, together"
ABOVE = """# Third-party modules

Which callbacks work on the LightningModules of published packages, and which are refused. No module is edited. Each
network is tiny, and each training takes six to eight steps on a CPU. `make test-thirdparty` runs all of it in an
environment for each package, and writes this page out of `thirdparty/records`. It is no part of continuous integration,
because it downloads.

What is checked in each cell:

- **Effect.** A callback of the training step changes the weights. Averages, merges, metrics and calibrators leave the
  raw weights as they are without the callback, to the bit.
- **Numbers by hand.** Averages and merges are computed again in float64 from the raw weights of each step, and compared
  with the module after the fit, with the checkpoints, and with `merged.ckpt`. Losses, penalties, weighted losses, the
  distance to a teacher that is a copy, metrics and temperatures are computed by hand where the network has no dropout
  and no BatchNorm.
- **Nothing changes where nothing should.** Weights of one, one stack, a mixture with itself, the same loss as a
  replacement and a term of zero leave the losses and gradients of all steps as they are without the callback.
- **Nothing is left.** After the fit the module has no new attributes, hooks, functions or state keys, and no object of
  this package hangs on the module, the strategy or the optimizers.
- **Plain opening.** The checkpoints open in a process that cannot import this package.

Numbers must agree to 1e-6, relative to the largest value (at least 1). In the table:

| Word | Meaning |
| --- | --- |
| yes | works, with nothing but the callback in the list |
| told | works, after you tell the callback what it cannot find: the section of the package says what |
| refused | an error says what is the matter, before anything is trained |
| **wrong** | a check failed |
| **senseless** | trains, although the method means nothing for this loss; it should be refused |
| **raw** | an error of torch or of the package, which does not say what is the matter |
"""
WORDS = {"works": "yes", "wrong": "**wrong**", "meaningless": "**senseless**", "raw error": "**raw**"}


def write(records: dict[str, dict[str, Any]]) -> None:
    """Write the page of what is recorded."""
    PAGE.write_text(text(records))


def recorded() -> dict[str, dict[str, Any]]:
    """The records of the packages, by name."""
    paths = {package: RECORDS / f"{package}.json" for package in PACKAGES}
    return {package: json.loads(path.read_text()) for package, path in paths.items() if path.exists()}


def text(records: dict[str, dict[str, Any]]) -> str:
    """The page."""
    cases = {
        f"{_title(package)}: {name}": case
        for package, record in records.items()
        for name, case in record["cases"].items()
    }
    callbacks = list(dict.fromkeys(row for case in cases.values() for row in case.get("cells", {})))
    lines = [ABOVE]
    # Two tables, because one of all callbacks is wider than a page.
    half = (len(callbacks) + 1) // 2
    for columns in (callbacks[:half], callbacks[half:]):
        lines.append("| Module | " + " | ".join(f"`{_short(name)}`" for name in columns) + " |")
        lines.append("| --- |" + " --- |" * len(columns))
        for title, case in cases.items():
            cells = case.get("cells", {})
            lines.append(f"| {title} | " + " | ".join(_word(cells.get(name)) for name in columns) + " |")
        lines.append("")
    for package, record in records.items():
        lines += _section(package, record)
    return "\n".join(lines).rstrip() + "\n"


def _short(name: str) -> str:
    return "together" if name == TOGETHER else name


def _title(package: str) -> str:
    return str(import_module(f"thirdparty.packages.{package}").TITLE)


def _word(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["outcome"] == "works":
        return "told" if cell.get("told") else "yes"
    return WORDS.get(cell["outcome"], cell["outcome"])


def _section(package: str, record: dict[str, Any]) -> list[str]:
    """What one package does, and what its cells say beside their word."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [f"## {_title(package)}", "", f"Run on {record['date']} with {versions}.", ""]
    lines += [textwrap.fill(import_module(f"thirdparty.packages.{package}").NOTE, 120), ""]
    for name, case in record["cases"].items():
        lines += [f"### {name}", "", f"{case['about'][0].upper()}{case['about'][1:]}.", ""]
        if "broken" in case:
            lines += [f"Not run: the training fails without any callback: `{case['broken']}`", ""]
            continue
        if case["own trainer"]:
            told = (_copies(case["copied"]), _kept(case["cells"]), _own_files(case.get("own files")))
            lines += [textwrap.fill(" ".join(filter(None, told)), 120, break_on_hyphens=False), ""]
        notes: dict[str, list[str]] = {}
        for row, cell in case["cells"].items():
            for note in _notes(cell):
                notes.setdefault(note, []).append(f"`{_short(row)}`")
        lines += [f"- {', '.join(rows)}: {note}" for note, rows in notes.items()]
        lines += [""] if notes else []
    return lines


def _notes(cell: dict[str, Any]) -> list[str]:
    """What is worth a line of a cell: what it was told, refused or did wrong."""
    notes = []
    if "rows" in cell:
        notes.append("these are " + ", ".join(f"`{name}`" for name in cell["rows"]) + ".")
    words = ", ".join(f"`{name}={value!r}`" for name, value in cell.get("told", {}).items())
    if cell["outcome"] in ("refused", "raw error"):
        notes.append(f"{cell['outcome']}{' although told ' + words if words else ''}: {_quoted(cell['says'])}")
    elif words:
        notes.append(f"told {words}.")
    if cell["outcome"] in ("wrong", "meaningless"):
        failed = [_check(name, value) for name, value in cell["checks"].items() if not _holds(value)]
        more = [_quoted(cell[key]) for key in ("check", "neutral", "opening") if key in cell]
        notes += [f"{WORDS[cell['outcome']]}: {'; '.join([*failed, *more])}."] if failed or more else []
    notes += [f"warns: {_quoted(warning)}" for warning in cell.get("warned", ())]
    return notes


def _check(name: str, value: bool | float) -> str:
    return f"not so: {name}" if isinstance(value, bool) else f"{name}: off by {value:g}"


def _quoted(sentence: str) -> str:
    """The sentence of an error without its class, and without the callback in it, so that equal ones stand together."""
    for pattern, instead in (
        (r"so [A-Z]\w+\(.* would have", "so [the callback] would have"),
        (r"^\w+: [A-Z]\w+ cannot work with", ": [The callback] cannot work with"),
        (r"(?<=own step instead: ).*", "[the method]."),
    ):
        sentence = re.sub(pattern, instead, sentence)
    return "“" + re.sub(r"([*\[])", r"\\\1", sentence.partition(": ")[2]) + "”"


def _holds(value: bool | float) -> bool:
    return value if isinstance(value, bool) else value <= TOLERANCE


def _copies(copied: bool) -> str:
    """What the package does to callbacks, measured at one that watches."""
    if copied:
        return (
            "The package copies your callbacks, and trains with the copies: find them in `trainer.callbacks`, because "
            "your own objects stay empty."
        )
    return "The package passes your callback objects on to the Trainer."


def _own_files(answer: str | None) -> str:
    if answer is None:
        return ""
    if answer == "open":
        return "The files that the package itself saves open without this package."
    return (
        "The files that the package itself saves hold the callbacks, and open only where the packages of all your "
        f"callbacks are installed: `{answer}`."
    )


def _kept(cells: dict[str, Any]) -> str:
    if not any("kept" in cell for cell in cells.values()):
        return ""
    kept = {path for cell in cells.values() for path in cell.get("kept", ())}
    places = sorted({path.rpartition(".")[0] for path in kept})
    named = ", ".join(f"`{place}`" for place in places)
    return (
        f"It keeps them in {named}, and so in the checkpoints of the Trainer, which open only where the packages of "
        "all your callbacks are installed."
    )
