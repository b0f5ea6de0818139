"""How many cases there are: enough for each reader, and in all, and the page of the site says no more than that."""

import inspect
import math
import re
from pathlib import Path

import pytest
import test_cache_files
import test_data_files
import test_export_files
import test_merge_files
import test_resume_files
import test_teacher_files
from corruptions import EXAMPLES

READERS = (
    test_teacher_files,
    test_merge_files,
    test_export_files,
    test_resume_files,
    test_cache_files,
    test_data_files,
)
PAGE = Path(__file__).parents[2] / "docs" / "safety.md"


def cases(module):
    """What pytest makes of the module's parameters; a test with drawn places counts each of at least that many."""
    total = 0
    for name, test in vars(module).items():
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        share = re.search(r"drawn\(EXAMPLES(?: // (\d))?, \w+\)$", inspect.getsource(test).strip())
        total += math.prod(len(mark.args[1]) for mark in marks) * (EXAMPLES // int(share[1] or 1) if share else 1)
    return total


@pytest.mark.parametrize("module", READERS, ids=lambda module: module.__name__)
def test_every_reader_has_its_cases(module):
    assert cases(module) >= 20


def test_the_page_says_what_is_true():
    each, total = map(int, re.search(r"at least (\d+) cases each, (\d+) in all", PAGE.read_text()).groups())
    assert min(map(cases, READERS)) >= each >= 20
    assert sum(map(cases, READERS)) >= total >= 200
