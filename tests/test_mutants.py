"""The faults of ``make mutants``: what is planted, where, and which are drawn."""

import ast
import textwrap

import pytest

from mutants.__main__ import drawn, files_of, suite_of
from mutants.equivalent import EQUIVALENT
from mutants.faults import mutants, planted
from mutants.old_faults import OLD_FAULTS, OldFault, planted_text
from mutants.plant import chosen, outcome, report
from mutants.sandbox import PACKAGE, ROOT
from mutants.table import SLOW_TESTS, slow_tests_for
from mutants.touched import marked

SOURCE = textwrap.dedent(
    '''
    """A file."""

    class Counts:
        def add(self, x: int = 1, *, all: bool = False) -> int | None:
            """Adds."""
            if x < 0 and not all:
                raise ValueError(f"x={x - 1}")
            self.sum += x
            return self.sum * 0.5 if all else -x
    '''
)
AFTER = [
    "def add(self, x: int=1, *, all: bool=True) -> int | None:",
    "def add(self, x: int=2, *, all: bool=False) -> int | None:",
    "def add(self, x: int=0, *, all: bool=False) -> int | None:",
    "if True:",
    "if False:",
    "if x < 0 or not all:",
    "if x <= 0 and (not all):",
    "if x >= 0 and (not all):",
    "if x < 1 and (not all):",
    "if x < 0 and (not not all):",
    "pass",
    "pass",
    "return None",
    "return self.sum * 0.5 if True else -x",
    "return self.sum * 0.5 if False else -x",
    "return self.sum / 0.5 if all else -x",
    "return self.sum * 1.0 if all else -x",
    "return self.sum * 0.5 if all else +x",
]


def test_the_faults_of_a_file():
    every = mutants("file.py", SOURCE)
    assert {mutant.function for mutant in every} == {"Counts.add"}
    assert [mutant.after for mutant in every] == AFTER


def test_a_fault_is_the_one_change_of_the_source():
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutants("file.py", SOURCE):
        lines = ast.unparse(ast.parse(planted(SOURCE, mutant.number))).splitlines()
        changed = [(a.strip(), b.strip()) for a, b in zip(whole, lines, strict=True) if a != b]
        assert changed == [(mutant.before, mutant.after)]


def test_every_function_says_that_it_is_called(monkeypatch):
    called, names = [], {}
    monkeypatch.setattr("builtins.__touched__", called.append, raising=False)
    exec(marked("file.py", SOURCE), names)
    assert not called
    with pytest.raises(ValueError, match="x=-3"):
        names["Counts"]().add(-2)
    assert called == ["file.py:Counts.add"]
    assert names["Counts"].add.__doc__ == "Adds."


def test_each_file_has_its_share_of_the_draw_and_an_edit_elsewhere_does_not_change_it():
    large = "\n\n".join(f"def f{i}(x):\n    return x + {i}" for i in range(10))
    every = mutants("large.py", large) + mutants("small.py", "def g(x):\n    return not x")
    chosen = drawn(every, 10, seed=0)
    assert [mutant.file for mutant in chosen].count("small.py") == 1
    assert 9 <= len(chosen) <= 11
    edited = mutants("large.py", "import math\n\n\n" + large) + mutants("other.py", large)
    again = drawn(edited, 2 * len(chosen), seed=0)
    keys = {mutant.key for mutant in again}
    assert {mutant.key for mutant in chosen if mutant.file == "large.py"} <= keys
    assert drawn(every, 10, seed=1) != chosen


def test_what_cannot_be_seen_has_a_reason():
    assert all(len(key) == 4 and key[2] != key[3] and reason for key, reason in EQUIVALENT.items())
    assert all((ROOT / key[0]).exists() for key in EQUIVALENT)


def test_parts_of_the_library_have_tests():
    assert files_of(["metrics/_rows.py"]) == ["lightning_objectives/metrics/_rows.py"]
    assert "tests/metrics/test_all_metrics.py" in suite_of("lightning_objectives/metrics/_rows.py")
    assert slow_tests_for("_weights/shards.py") == ["tests/callbacks/test_sharded_processes.py"]
    assert slow_tests_for("metrics/_rows.py") == []
    assert all((ROOT / PACKAGE / pattern).exists() for pattern in SLOW_TESTS)
    assert all((ROOT / test).exists() for tests in SLOW_TESTS.values() for test in tests)
    with pytest.raises(SystemExit, match="metric is no file or folder of lightning_objectives"):
        files_of(["metric"])


@pytest.mark.parametrize("fault", OLD_FAULTS, ids=lambda fault: fault.name)
def test_an_old_fault_can_be_planted_in_the_code_of_today(fault):
    source = (ROOT / fault.file).read_text()
    ast.parse(planted_text(fault, source))
    assert fault.then != fault.now
    assert all((ROOT / path.partition("::")[0]).exists() for path in fault.tests.split())


def test_old_faults_have_names_of_their_own():
    assert len({fault.name for fault in OLD_FAULTS}) == len(OLD_FAULTS)
    with pytest.raises(ValueError, match=r"occurs 0 times in .*calls\.py, but must occur once"):
        planted_text(OLD_FAULTS[0], "")


FAULT = OldFault(
    "a sum", "A difference is returned.", "sum.py", "a + b", "a - b", "tests/test_sum.py tests/test_more.py"
)


class Runner:
    """Runs no tests: which fail is told, with the fault and without it."""

    def __init__(self, source, with_fault, without=("passed", None)):
        self.sources = {"sum.py": source}
        self.written = dict(self.sources)
        self.answers = {source.replace("a + b", "a - b"): with_fault, source: without}

    def write(self, file, source):
        self.written[file] = source

    def restore(self, file):
        self.written[file] = self.sources[file]

    def run(self, make, files, *words, cpu, marks):
        return self.answers[self.written["sum.py"]]


SUM = "def add(a, b): return a + b"


@pytest.mark.parametrize(
    ("runner", "result"),
    [
        (Runner(SUM, ("failed", "tests/test_sum.py::test_add")), "test tests/test_sum.py::test_add"),
        (Runner(SUM, ("failed", "tests/test_laws.py::test_add")), "law tests/test_laws.py::test_add"),
        (Runner(SUM, ("passed", None)), "NOT FOUND: the tests passed"),
        (Runner(SUM, ("failed", None)), "NOT FOUND: the tests failed"),
        (Runner(SUM, ("crashed", None)), "NOT FOUND: the tests crashed"),
        (Runner(SUM, ("failed", "t::x"), ("failed", "t::x")), "NOT FOUND: t::x fails without the fault too"),
        (Runner("def add(a, b): return b + a", ("failed", "t::x")), "NOT FOUND: 'a sum': 'a + b' occurs 0 times in"),
    ],
    ids=["a test", "a law", "no test", "not collected", "crashed", "fails anyway", "text gone"],
)
def test_what_finds_an_old_fault(runner, result, capsys):
    assert outcome(FAULT, runner).startswith(result)
    assert runner.written == runner.sources
    missed = result.startswith("NOT FOUND")
    assert report([FAULT], runner) == missed
    assert ("Not found: a sum" in capsys.readouterr().out) == missed


def test_old_faults_are_chosen_by_words():
    assert [fault.name for fault in chosen(["rows by a guess", "a batchmean"])] == ["a batchmean", "rows by a guess"]
    assert chosen([]) == list(OLD_FAULTS)
    with pytest.raises(SystemExit, match="'nothing like it' is in the name of no old fault"):
        chosen(["nothing like it"])
