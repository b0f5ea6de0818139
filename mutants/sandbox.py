"""Runs tests in processes of their own, on a copy of the repository, so that the working tree stays as it is."""

import compileall
import contextlib
import json
import multiprocessing
import os
import py_compile
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_objectives"
COPIED = (PACKAGE, "tests", "docs", "examples", "benchmarks", "compat", "mutants", "*.md", "*.toml")
QUICK = "not slow and not processes"
SLOW = "slow or processes"


class Sandbox:
    """A copy of the repository, and processes that run tests there.

    This process has imported all that is slow to import but for the library; each run is a fork of it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        for pattern in COPIED:
            for path in ROOT.glob(pattern):
                copy = partial(shutil.copytree, ignore=shutil.ignore_patterns("__pycache__"))
                (copy if path.is_dir() else shutil.copy)(path, self.folder / path.name)
        self.sources = {str(p.relative_to(self.folder)): p.read_text() for p in self.folder.glob(f"{PACKAGE}/**/*.py")}
        """Those of the library, by the names of their files, as they were at the start."""
        # By content, not by date: a fault and its removal come within a second.
        by_content = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self.folder / PACKAGE, quiet=1, invalidation_mode=by_content)
        _import_what_is_slow()

    def close(self) -> None:
        """Delete the copy."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, file: str, source: str) -> None:
        """Put a source in the place of that of a file."""
        (self.folder / file).write_text(source)

    def restore(self, file: str) -> None:
        """Put back the file without a fault."""
        self.write(file, self.sources[file])

    def run(
        self, make: Callable[[], Any], files: list[str], *words: str, cpu: float, marks: str = QUICK
    ) -> tuple[str, Any]:
        """Run pytest on files with the plug-in that is made; how it ended, and the plug-in's ``result``.

        Args:
            make: the plug-in, in the new process.
            files: the tests.
            words: for pytest.
            cpu: seconds of the processor that it may take; on a busy machine they are no seconds of a clock.

            marks: of the tests that it runs, as pytest's ``-m``.

        Returns:
            ``passed``, ``failed``, ``timeout`` or ``crashed``.
        """
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)

        def body() -> None:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu) + 5))
            with (self.folder / "output.txt").open("wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            code, result = self._pytest(make, files, ("-m", marks, *words))
            answer.write_text(json.dumps([code, result]))
            os._exit(0)

        process = multiprocessing.get_context("fork").Process(target=body)
        process.start()
        process.join(20 * cpu)
        timed_out = process.is_alive() or process.exitcode == -signal.SIGXCPU
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # and what it started
        process.join()
        if timed_out:
            return "timeout", None
        if not answer.exists():
            return "crashed", None
        code, result = json.loads(answer.read_text())
        return "passed" if code == 0 else "failed", result

    def _pytest(self, make: Callable[[], Any], files: list[str], words: tuple[str, ...]) -> tuple[int, Any]:
        import pytest

        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        os.environ |= {"PYTHONPATH": str(self.folder), "HYPOTHESIS_STORAGE_DIRECTORY": str(self.folder / "hypothesis")}
        plugin = make()
        settings = ["-p", "no:xdist", "--hypothesis-seed=0", "--tb=short"]
        settings += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what this process has imported
        code = pytest.main([*settings, f"--basetemp={self.folder / 'tmp'}", *words, *files], plugins=[plugin])
        return int(code), plugin.result

    def output(self) -> str:
        """What the last run printed."""
        return (self.folder / "output.txt").read_text(errors="replace")


def _import_what_is_slow() -> None:
    import lightning.pytorch
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import timm
    import torch
    import torch._dynamo
    import torchmetrics  # noqa: F401

    assert lightning.pytorch
    assert timm
    torch.set_num_threads(1)
    assert PACKAGE not in sys.modules
