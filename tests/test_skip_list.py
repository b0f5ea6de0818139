"""The list of allowed skips, tried on small projects of its own."""

import shutil
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_runs(): pass

@pytest.mark.skip(reason="no reason")
def test_skipped(): pass

@pytest.mark.xfail
def test_expected_to_fail(): assert 0

@pytest.mark.xfail(strict=False)
def test_passes_after_all(): pass
"""
ALL = "test_it.py::test_skipped # a reason\n*_expected_to_fail # another\n*_after_all # third\n"


@pytest.fixture
def project(pytester):
    shutil.copy(Path(__file__).with_name("skip_list.py"), pytester.path / "conftest.py")
    pytester.makepyfile(test_it=TESTS)

    def run(allowed, *args):
        (pytester.path / "allowed_skips.txt").write_text(allowed)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *args)

    return run


@pytest.mark.parametrize("workers", ["0", "1"])  # with one, the reports come from another process
def test_a_skip_that_is_not_listed_fails_the_run(project, pytester, workers):
    pytester.makepyfile(test_other="import pytest\npytest.importorskip('no_such_module')")
    result = project("", "-n", workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for name in ("it.py::test_skipped", "it.py::test_expected_to_fail", "it.py::test_passes_after_all", "other.py"):
        result.stdout.fnmatch_lines(f"SKIPPED, but not in allowed_skips.txt: test_{name}")


def test_a_listed_skip_does_not_and_a_needless_line_is_named(project):
    result = project(ALL + "*::test_runs # was needed once\n")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines("In allowed_skips.txt, but not skipped: [*]::test_runs")
    result.stdout.no_fnmatch_line("*SKIPPED, but*")


def test_a_line_without_a_reason_is_refused(project):
    result = project("test_it.py::test_skipped\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*'test_it.py::test_skipped' needs a reason*")
