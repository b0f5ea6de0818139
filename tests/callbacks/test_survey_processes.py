"""A survey by two processes is that of one, and one that is killed leaves nothing behind."""

import pytest
import survey_runs
import torch
from helpers import data
from processes import PATIENCE, ranks, start

pytestmark = pytest.mark.processes


def test_two_processes_equal_one_with_the_joined_data(tmp_path):
    first, second = ranks(survey_runs.__file__, "joined", tmp_path)
    one = survey_runs.joined(1)
    counts = data(n=survey_runs.ROWS, dtype=torch.float64).tensors[1].bincount().double()
    assert torch.equal(one["counts"]["counts"], counts)
    assert one["some"]["counts"].sum() == 11
    for rank in (first, second):
        assert rank.keys() == one.keys()
        for name in one.keys() - {"rank"}:
            torch.testing.assert_close(rank[name], one[name], rtol=1e-6, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
            assert all(torch.equal(first[name][key], second[name][key]) for key in first[name])


def test_an_error_of_one_process_ends_all_and_doubts_are_told(tmp_path):
    first, second = ranks(survey_runs.__file__, "failing", tmp_path)
    assert first["error"] == "The process of rank 1 failed: ValueError: planted"
    assert second["error"] == "planted"
    (message,) = first["warnings"]
    assert "a sample that several processes get counts once for each" in message
    assert first["twice"]["counts"].sum() == 2 * survey_runs.ROWS


def test_a_survey_that_is_killed_leaves_no_file(tmp_path):
    process = start(survey_runs.__file__, "killed", tmp_path)
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            torch.rand(1000).sort()
    finally:
        process.kill()
        process.wait(PATIENCE)
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]
