"""The benchmarks run, each at its smallest, and the page says what their files say."""

import json
import logging

import pytest

from benchmarks.page import GPU_PAGE, GPU_RESULTS, PAGE, RESULTS, busy, page, promises
from benchmarks.speed.__main__ import measure, names
from benchmarks.timing import interleaved, timed


@pytest.fixture(autouse=True)
def logs():
    """Rows silence what logs."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


@pytest.mark.parametrize("row", names())
def test_a_row_runs_at_its_smallest_and_keeps_every_repeat(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = measure(row, tiny=True, device="cpu", threads=1, out=tmp_path)
    found = json.loads(path.read_text())
    assert found["tables"]
    assert found["revision"]
    assert found["versions"]["torch"]
    for table in found["tables"]:
        if "wall" in table:
            assert all(seconds and min(seconds) > 0 for seconds in table["wall"].values())
            assert {target["of"] for target in table["targets"]} <= table["wall"].keys()
            assert not table["limit"] or table["limit"] in table["wall"]
        else:
            assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert f"## {found['title']}" in page(tmp_path)
    if row == "merging_blocks":
        (table,) = found["tables"]
        amounts = {
            line[table["columns"].index("what")]: line[table["columns"].index("amount")] for line in table["rows"]
        }
        assert [name for name, value in amounts.items() if value <= 0] == []
        assert amounts.keys() >= {"one copy in memory", "snapshot, keep='files'", "snapshot, keep='sum'"}


def test_the_page_is_what_the_files_say():
    for text, results in ((PAGE, RESULTS), (GPU_PAGE, GPU_RESULTS)):
        assert text.read_text() == page(results), "run `python -m benchmarks.page`"


def test_what_is_kept_holds_no_tiny_measurement():
    files = list(RESULTS.rglob("*.json"))
    assert files
    assert not [file.name for file in files if json.loads(file.read_text())["tiny"]]


@pytest.mark.parametrize(
    ("target", "measured", "kept"),
    [
        ({"kind": "ratio", "over": "limit", "at_most": 2.0}, "2.000", True),
        ({"kind": "ratio", "over": "limit", "at_most": 1.9}, "2.000", False),
        ({"kind": "difference", "over": "limit", "at_most": 1.5e-3}, "+2.000 ms", False),
        ({"kind": "seconds", "over": "", "at_most": 4e-3}, "4 ms", True),
    ],
)
def test_a_promise_is_judged_by_medians(target, measured, kept):
    wall = {"ours": [1e-3, 4e-3, 9.0], "limit": [2e-3, 2e-3, 2e-3]}
    table = {"name": "t", "wall": wall, "targets": [{"of": "ours", **target}]}
    ((_, _, said, held),) = promises(table)
    assert (said, held) == (measured, kept)


def test_a_figure_is_judged_by_its_sign():
    promised = [["rate", 0.89, ">=", 0.9], ["memory", 1.0, "<=", 1.1]]
    assert [kept for *_, kept in promises({"name": "t", "promised": promised})] == [False, True]


def test_variants_take_turns_and_the_order_rotates():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "abc"}
    times = interleaved(runs, repeats=2, warmup=1)
    assert called == [*"abc", *"bca", *"cab"]
    assert [len(times[name].wall) for name in "abc"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("before", "after", "found"), [(0.1, 2.4, False), (2.1, 2.0, False), (9.0, 2.0, True), (0.0, 5.0, True)]
)
def test_a_busy_machine_is_no_judge(tmp_path, before, after, found):
    told = {
        "title": "T",
        "text": "",
        "notes": [],
        "absent": {},
        "row": "t",
        "command": "c",
        "date": "2026-01-01T",
        "device": "cpu",
    }
    told |= {"revision": "r", "modified": False, "machine": "m", "threads": 2, "versions": {"python": "3"}}
    told |= {"load_before": [before], "load": [after]}
    told["tables"] = [{"name": "n", "columns": ["", "x"], "rows": [["a", 1.0]], "promised": [["x", 2.0, "<=", 1.0]]}]
    assert busy(told) is found
    (tmp_path / "t.json").write_text(json.dumps(told))
    text = page(tmp_path)
    assert ("not judged: busy machine" in text) is found
    assert ("**missed**" in text) is not found
    assert ("The machine was busy" in text) is found


def test_on_a_gpu_the_time_is_that_between_two_events(monkeypatch):
    """The calls that it takes, in their order."""
    called = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            called.append("record")

        def elapsed_time(self, end):
            assert end is not self
            return 5.0

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: called.append("wait"))
    wall, _ = timed(lambda: called.append("run"), "cuda")
    assert called == ["wait", "record", "run", "record", "wait"]
    assert wall == 5e-3
