"""Records which functions of the library each test calls, so that a fault is only shown to tests that can see it."""

import ast
import builtins
import hashlib
import json
import resource
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mutants.sandbox import PACKAGE, ROOT, SLOW, Sandbox

CACHE = ROOT / "build" / "mutants.json"


def marked(file: str, source: str) -> str:
    """The source of a file in which every function says that it is called."""
    tree = ast.parse(source)
    _mark(tree.body, file, "")
    return ast.unparse(ast.fix_missing_locations(tree))


def _mark(body: list[ast.stmt], file: str, around: str) -> None:
    for node in body:
        for inner in ("body", "orelse", "finalbody"):
            name = around
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                name = f"{around}.{node.name}".lstrip(".")
            _mark(getattr(node, inner, []), file, name)
        for handler in getattr(node, "handlers", []):
            _mark(handler.body, file, around)
        if isinstance(node, ast.FunctionDef):
            name = f"{around}.{node.name}".lstrip(".")
            place = 1 if ast.get_docstring(node) is not None else 0
            node.body[place:place] = ast.parse(f"__touched__({f'{file}:{name}'!r})").body


class Recorder:
    """A plug-in of pytest that keeps, for each test, how long it took, whether it passed, and what it called."""

    def __init__(self) -> None:
        self.shared: set[str] = set()
        """What is called for several tests: when their file is read, and by fixtures that live longer than one."""
        self.called = self.shared
        self.result: dict[str, Any] = {"tests": {}, "shared": []}
        builtins.__touched__ = lambda name: self.called.add(name)  # type: ignore[attr-defined]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        """Collect what one test calls."""
        self.called = set()
        self.result["tests"][item.nodeid] = {"seconds": 0.0, "passed": True}
        result = yield
        self.result["tests"][item.nodeid]["called"] = sorted(self.called)
        self.result["shared"] = sorted(self.shared)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """What a fixture of a module calls is called for all of its tests."""
        kept = self.called
        self.called = kept if fixturedef.scope == "function" else self.shared
        try:
            return (yield)
        finally:
            self.called = kept

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Time and outcome."""
        test = self.result["tests"][report.nodeid]
        test["seconds"] += report.duration
        test["passed"] = test["passed"] and not report.failed


class Touched:
    """What the tests call; recorded once for a state of the library and of the tests."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.records: dict[str, Any] = json.loads(CACHE.read_text()) if CACHE.exists() else {}

    def record(self, files: list[str]) -> None:
        """Record those of the files of tests that have changed, or whose library has."""
        folder = self.sandbox.folder
        helpers = [path for path in folder.glob("tests/**/*.py") if not path.name.startswith("test_")]
        shared = _digest([*folder.glob(f"{PACKAGE}/**/*.py"), *helpers])
        keys = {file: shared + _digest([folder / file]) for file in files}
        new = [file for file in files if self.records.get(file, {}).get("key") != keys[file]]
        if not new:
            return
        with_marks = {name: marked(name, source) for name, source in self.sandbox.sources.items()}
        for file in new:
            for name, source in with_marks.items():
                self.sandbox.write(name, source)
            how, record = self.sandbox.run(Recorder, [file], cpu=900)
            for name in with_marks:
                self.sandbox.restore(name)
            if record is None:
                raise RuntimeError(f"{file} {how}:\n{self.sandbox.output()}")
            failed = [name for name, test in record["tests"].items() if not test["passed"]]
            if failed:
                # Compiled code is another where it says what is called: such a test may see any fault.
                how, _ = self.sandbox.run(lambda names=failed: Chosen(dict.fromkeys(names, 300.0)), [file], cpu=900)
                if how != "passed":
                    raise RuntimeError(f"{file} fails without a fault:\n{self.sandbox.output()}")
            self.records[file] = {**record, "key": keys[file]}
            seconds = sum(test["seconds"] for test in record["tests"].values())
            print(f"{file}: {len(record['tests'])} tests, {seconds:.0f} s", flush=True)
            CACHE.parent.mkdir(exist_ok=True)
            CACHE.write_text(json.dumps(self.records))

    @cache  # noqa: B019  # it lives as long as the process
    def check_slow(self, files: tuple[str, ...]) -> None:
        """Raise an error if the slow tests of these files fail without a fault."""
        how, _ = self.sandbox.run(First, [*files], cpu=900, marks=SLOW)
        if how != "passed":
            raise RuntimeError(f"{files} {how} without a fault:\n{self.sandbox.output()}")

    def tests_of(self, file: str, function: str, among: list[str]) -> dict[str, float]:
        """The tests that call a function, or any that call something of its file where it is none; and their times."""
        tests = {}
        for name in among:
            record = self.records[name]
            for test, run in record["tests"].items():
                if not run["passed"] or self._calls(record["shared"] + run["called"], file, function):
                    tests[test] = run["seconds"]
        return dict(sorted(tests.items(), key=lambda item: item[1]))

    def _calls(self, called: list[str], file: str, function: str) -> bool:
        """A class, or the module, is called by those who call anything of the file."""
        if f"{file}:{function}" in called:
            return True
        is_function = f"__touched__('{file}:{function}')" in self._marked(file)
        return not is_function and any(name.startswith(f"{file}:") for name in called)

    @cache  # noqa: B019  # it lives as long as the process
    def _marked(self, file: str) -> str:
        return marked(file, self.sandbox.sources[file])


class First:
    """A plug-in of pytest that keeps the first test that failed."""

    def __init__(self) -> None:
        self.result: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the first failure."""
        if report.failed:
            self.result = self.result or report.nodeid


class Chosen(First):
    """A plug-in of pytest that runs chosen tests in their order, and keeps the first that failed.

    Args:
        seconds: how long each test usually takes, by its name. One that takes three times as long, and half a minute
            of the processor more, ends the process, because it hangs.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        super().__init__()
        self.seconds = seconds
        self.place = {name: place for place, name in enumerate(seconds)}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Limit the time of the next test."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit = usage.ru_utime + usage.ru_stime + 3 * self.seconds[nodeid] + 30
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (min(int(limit), most), most))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Choose and sort."""
        items[:] = sorted((item for item in items if item.nodeid in self.place), key=lambda i: self.place[i.nodeid])


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()
