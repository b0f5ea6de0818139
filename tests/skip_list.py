"""No test is skipped, or expected to fail, that is not on the list."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


def pytest_configure(config):
    # A conftest's own hooks are not called for doctests outside of this folder; those of a plugin are.
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist send their reports to the controller
        config.pluginmanager.register(SkipsAreListed(read_allowed(ALLOWED)))


def read_allowed(path):
    """The patterns of the list, with their reasons."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.partition(" # ")[::2] for line in lines]
    for pattern, reason in pairs:
        if not reason.strip():
            raise pytest.UsageError(f"{path.name}: {pattern!r} needs a reason behind ` # `.")
    return {pattern.strip(): reason.strip() for pattern, reason in pairs}


class SkipsAreListed:
    """Fails the run where a test was skipped, or expected to fail, that is not on the list."""

    def __init__(self, allowed):
        self.allowed = allowed
        self.unlisted = []
        self.needless = []

    def pytest_runtest_logreport(self, report):
        self.judge(report, ran=report.when == "call" and not report.skipped)

    def pytest_collectreport(self, report):
        self.judge(report, ran=False)

    def judge(self, report, *, ran):
        skipped = report.skipped or hasattr(report, "wasxfail")
        patterns = [pattern for pattern in self.allowed if fnmatchcase(report.nodeid, pattern)]
        if skipped and not patterns:
            self.unlisted.append(report.nodeid)
        elif ran and not skipped:
            self.needless += patterns

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if self.unlisted and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for nodeid in self.unlisted:
            terminalreporter.write_line(f"SKIPPED, but not in {ALLOWED.name}: {nodeid}", red=True)
        for pattern in sorted(set(self.needless)):
            terminalreporter.write_line(f"In {ALLOWED.name}, but not skipped: {pattern}", yellow=True)
