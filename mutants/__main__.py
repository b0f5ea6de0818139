"""Plants faults, runs the tests of their files, and reports those that none has seen.

``python -m mutants`` draws 160 faults over :data:`mutants.table.SCOPE`, the same at each call;
``python -m mutants --count 40 metrics _files/merge.py`` draws from some parts; ``--again`` takes those that survived
the last time. ``--old-faults`` plants the faults of ``old_faults``, all or those whose names hold a word, and tells
which law or test finds each. A fault that cannot be seen stands in ``equivalent.py`` with the reason, and is not run.
The quick tests look for it; the slow ones only if the quick ones miss it and ``table.py`` names some for its file.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mutants.equivalent import EQUIVALENT
from mutants.faults import Mutant, mutants, planted
from mutants.plant import chosen as chosen_old_faults
from mutants.plant import report
from mutants.sandbox import PACKAGE, ROOT, SLOW, Sandbox
from mutants.table import SCOPE, patterns_for, slow_tests_for
from mutants.touched import CACHE, Chosen, First, Touched

LEAST = 0.95
"""The share of the faults that must be seen."""
SURVIVORS = CACHE.with_name("survivors.json")


def files_of(parts: Iterable[str]) -> list[str]:
    """The files of the library under folders, or of these names, such as ``metrics`` and ``_files/merge.py``."""
    files = []
    for part in parts:
        path = ROOT / PACKAGE / part
        if not path.exists():
            raise SystemExit(f"{part} is no file or folder of {PACKAGE}: say, for example, metrics or _files/merge.py.")
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [str(file.relative_to(ROOT)) for file in files]


def drawn(every: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """Faults of each file, in proportion to how many it has, one at least; an edit elsewhere changes no draw."""
    by_file: dict[str, list[Mutant]] = {}
    for mutant in every:
        by_file.setdefault(mutant.file, []).append(mutant)
    chosen = []
    for own in by_file.values():
        own.sort(key=lambda mutant: hashlib.sha256(repr((seed, mutant.key)).encode()).digest())
        chosen += own[: max(1, round(count * len(own) / len(every)))]
    return sorted(chosen, key=lambda mutant: (mutant.file, mutant.line, mutant.number))


def suite_of(file: str) -> list[str]:
    """The files of tests for a file of the library: its own examples, and those of the table."""
    patterns = patterns_for(file.removeprefix(f"{PACKAGE}/"))
    paths = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    return [*([file] if ">>> " in (ROOT / file).read_text() else []), *sorted(paths)]


def outcome(mutant: Mutant, sandbox: Sandbox, touched: Touched) -> str:
    """``killed``, ``timeout``, ``survived``, or ``not called`` if no test calls the function; and by which test."""
    tests = touched.tests_of(mutant.file, mutant.function, suite_of(mutant.file))
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    slow = slow_tests_for(mutant.file.removeprefix(f"{PACKAGE}/"))
    if slow:
        touched.check_slow(tuple(slow))
    sandbox.write(mutant.file, planted(sandbox.sources[mutant.file], mutant.number))
    how, by = "not called", None
    try:
        if tests:
            how, by = sandbox.run(lambda: Chosen(tests), files, "-x", cpu=3 * sum(tests.values()) + 60)
        if slow and how in ("not called", "passed"):
            how, by = sandbox.run(First, slow, "-x", cpu=900, marks=SLOW)
    finally:
        sandbox.restore(mutant.file)
    if how in ("not called", "timeout"):
        return how
    return "survived" if how == "passed" else f"killed by {by or how}"


def table(results: list[tuple[Mutant, str]]) -> str:
    """The counts, by file and together."""
    rows: dict[str, Counter[str]] = {}
    for mutant, result in results:
        for name in (mutant.file.removeprefix(f"{PACKAGE}/"), "all"):
            rows.setdefault(name, Counter()).update([result.partition(" by ")[0], "faults"])
    columns = ("faults", "killed", "timeout", "survived", "not called", "equivalent")
    lines = [f"{'':40}" + "".join(f"{column:>11}" for column in columns)]
    rows["all"] = rows.pop("all")
    lines += [f"{name:40}" + "".join(f"{row[column]:11}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines)


def main() -> int:
    """Run; the exit code is 1 where fewer than 95 % are seen."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=SCOPE, help="folders and files of the library")
    parser.add_argument("--count", type=int, default=160, help="how many faults, about (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="another draw")
    parser.add_argument("--again", action="store_true", help="those that survived the last time")
    parser.add_argument(
        "--old-faults",
        action="store_true",
        help="plant those of mutants/old_faults, all or those with these words in their names",
    )
    words = parser.parse_args()
    if words.old_faults:
        faults, sandbox = chosen_old_faults([] if words.parts is SCOPE else words.parts), Sandbox()
        try:
            return report(faults, sandbox)
        finally:
            sandbox.close()
    sources = {file: Path(ROOT / file).read_text() for file in files_of(words.parts)}
    every = [mutant for file, source in sources.items() for mutant in mutants(file, source)]
    if words.again:
        last = {tuple(key) for key in json.loads(SURVIVORS.read_text())}
        chosen = [mutant for mutant in every if mutant.key in last]
    else:
        chosen = drawn(every, words.count, words.seed)
    known = {mutant.key for mutant in every}
    for key in EQUIVALENT:
        if key not in known and (key[0] in sources or not (ROOT / key[0]).exists()):
            print(f"equivalent.py: there is no such fault any more: {key}")
    print(f"{len(chosen)} of {len(every)} faults", flush=True)
    results = run(chosen)
    survivors = [mutant for mutant, result in results if result in ("survived", "not called")]
    SURVIVORS.write_text(json.dumps([mutant.key for mutant in survivors]))
    print(table(results))
    for mutant in survivors:
        print(f"\n{mutant}")
    counted = [result for _, result in results if result != "equivalent"]
    share = 1 - len(survivors) / max(1, len(counted))
    print(f"\n{share:.1%} of {len(counted)} faults are seen; {len(results) - len(counted)} more cannot be.")
    return int(share < LEAST)


def run(chosen: list[Mutant]) -> list[tuple[Mutant, str]]:
    """What became of each fault."""
    results = [(mutant, "equivalent") for mutant in chosen if mutant.key in EQUIVALENT]
    sandbox = Sandbox()
    try:
        touched = Touched(sandbox)
        files = {test for mutant in chosen if mutant.key not in EQUIVALENT for test in suite_of(mutant.file)}
        touched.record(sorted(files))
        for mutant in chosen:
            if mutant.key not in EQUIVALENT:
                results.append((mutant, outcome(mutant, sandbox, touched)))
                print(f"{results[-1][1]}: {mutant}", flush=True)
    finally:
        sandbox.close()
    return results


if __name__ == "__main__":
    raise SystemExit(main())
