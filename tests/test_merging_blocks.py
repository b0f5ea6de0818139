"""The benchmark of the snapshots runs; what it measures is no matter here."""

import pytest

from benchmarks.speed import merging_blocks

pytestmark = pytest.mark.filterwarnings("ignore")


def test_it_runs():
    rows = merging_blocks.main(rounds=1, memory=False)
    assert [row["what"] for row in rows if row["amount"] <= 0] == []
    assert {row["what"] for row in rows} >= {"one copy in memory", "snapshot, keep='files'", "snapshot, keep='sum'"}
    assert len({frozenset(row) for row in rows}) == 1, "the rows of one table"
