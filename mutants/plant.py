"""Plants the old faults, one at a time, and tells which law or test finds each."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from mutants.old_faults import OLD_FAULTS, OldFault, planted_text
from mutants.sandbox import QUICK
from mutants.touched import First

NOT_FOUND = "NOT FOUND"
_LAW = ("test_laws", "test_conformance.py::test_law[", "test_settings.py")
"""What is in the names of tests that hold for everything of a kind, and not for one example."""


class Runner(Protocol):
    """What a sandbox does for a fault."""

    sources: dict[str, str]

    def write(self, file: str, source: str) -> None:
        """Put a source in the place of that of a file."""

    def restore(self, file: str) -> None:
        """Put back the file without a fault."""

    def run(self, make: Any, files: list[str], *words: str, cpu: float, marks: str) -> tuple[str, Any]:
        """Run tests; how it ended, and the first that failed."""


def chosen(words: Sequence[str]) -> list[OldFault]:
    """The faults whose names contain one of the words; all without words."""
    for word in words:
        if not any(word in fault.name for fault in OLD_FAULTS):
            raise SystemExit(f"{word!r} is in the name of no old fault: see mutants/old_faults.")
    return [fault for fault in OLD_FAULTS if not words or any(word in fault.name for word in words)]


def report(faults: Iterable[OldFault], runner: Runner) -> int:
    """Print a table of the faults and the tests that find them; 1 if a fault is not found or cannot be planted."""
    results = []
    for fault in faults:
        results.append((fault, outcome(fault, runner)))
        print(f"| {fault.name} | {fault.wrong} | {results[-1][1]} |", flush=True)
    missed = [fault.name for fault, result in results if result.startswith(NOT_FOUND)]
    laws = sum(result.startswith("law") for _, result in results)
    print(f"{len(results) - len(missed)} of {len(results)} old faults are found, {laws} of them by a law.")
    if missed:
        print(f"Not found: {', '.join(missed)}")
    return int(bool(missed))


def outcome(fault: OldFault, runner: Runner) -> str:
    """The law or the test that finds a fault first, or why none does."""
    try:
        source = planted_text(fault, runner.sources[fault.file])
    except ValueError as error:
        return f"{NOT_FOUND}: {error}"
    runner.write(fault.file, source)
    try:
        how, by = runner.run(First, fault.tests.split(), "-x", cpu=900, marks=QUICK)
    finally:
        runner.restore(fault.file)
    if by is None:  # For example, the tests could not be collected, which shows nothing of the fault.
        return f"{NOT_FOUND}: the tests {how}"
    if runner.run(First, [by], "-x", cpu=900, marks=QUICK)[0] != "passed":
        return f"{NOT_FOUND}: {by} fails without the fault too"
    return f"{'law' if any(part in by for part in _LAW) else 'test'} {by}"
