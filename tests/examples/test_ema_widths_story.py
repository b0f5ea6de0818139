"""The story of the widths at its smallest: the averages after the training are those that a training keeps."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("ema_widths_story", ROOT / "examples" / "stories" / "ema_widths.py")
story = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(story)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return story.one_seed(0, 160, tmp_path_factory.mktemp("story"))


def test_a_width_after_the_training_is_the_one_that_a_training_keeps(result):
    written = [width for width, row in result.widths.items() if not math.isnan(row.validation)]
    assert set(story.KEPT) < set(written)
    for width in written:
        row = result.widths[width]
        assert row.error <= story.MAX_ERROR
        assert row.validation == pytest.approx(row.kept, rel=0.01)
        assert row.apart < (1e-5 if width in story.KEPT else 0.02)
    other = result.widths[0.03].validation - result.widths[0.2].validation
    assert abs(other) > 10 * abs(result.widths[0.03].validation - result.widths[0.03].kept)  # the widths differ


def test_a_width_that_the_files_cannot_give_has_its_error_and_no_file(result):
    for width in set(story.WIDTHS) - {width for width, row in result.widths.items() if row.validation > 0}:
        row = result.widths[width]
        assert row.error > story.MAX_ERROR
        assert math.isnan(row.apart)
        assert math.isfinite(row.kept)
    assert math.isnan(result.widths[0.2886].validation)
    assert f"| width 0.2886 | - | - | {result.widths[0.2886].kept:.4f} | - |" in story.table([result])


def test_the_page_has_the_rows_of_the_story(result):
    page = (ROOT / "docs" / "stories" / "ema_widths.md").read_text()
    heads = [re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE) for text in (story.table([result]), page)]
    assert heads[0] == [head for head in heads[1] if head in heads[0]]
    assert story.table([result]).splitlines()[0] in page, "run examples/stories/ema_widths.py, and put its table there"
    assert (ROOT / "docs" / "stories" / "ema_widths.svg").read_text().count("post_hoc_ema") == 1


@pytest.mark.slow
def test_the_command_writes_the_table_and_the_picture(tmp_path, monkeypatch, capsys):
    out, picture = tmp_path / "table.md", tmp_path / "picture.svg"
    arguments = ["--seeds", "2", "--steps", "16", "--out", str(out), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["ema_widths.py", *arguments])
    monkeypatch.setattr(story.torch, "set_num_threads", lambda threads: None)
    story.main()
    assert out.read_text() in capsys.readouterr().out
    assert "±" in out.read_text()
    assert "raw weights" in picture.read_text()
