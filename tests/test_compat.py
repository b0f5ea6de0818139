"""The environments come out of pyproject.toml, and the page out of the record."""

from compat import page
from compat.environments import ROOT, lowest, tomllib
from compat.other_name import renamed

RECORDED = {
    "date": "2026-01-02",
    "versions": {"python": "3.11.2", "torch": "2.4.0"},
    "counts": {"passed": 7, "failed": 1},
    "failed": ["tests/test_a.py::test_b"],
    "exit": 1,
    "seconds": 3,
}


def test_the_lowest_is_each_bound_as_it_is_written():
    pinned = dict(line.split("==") for line in lowest())
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, bound = line.split(">=")
        assert pinned[name] == bound
    assert pinned["pytorch-lightning"] == pinned["lightning"]
    assert "jsonargparse[signatures]" in pinned


def test_a_page_shows_what_is_recorded_and_no_more():
    text = page.text({"lowest": RECORDED})
    assert "| torch | 2.4.0 |" in text
    assert "| tests that passed | 7 |" in text
    assert "- `tests/test_a.py::test_b`" in text
    assert "| run on | 2026-01-02 |" in text
    assert "`newest` |" not in text


def test_the_other_name():
    assert renamed("import lightning as L") == "import pytorch_lightning as L"
    assert renamed("from lightning.pytorch.demos import x") == "from pytorch_lightning.demos import x"
    assert renamed("lightning_objectives, pytorch_lightning.cli") == "lightning_objectives, pytorch_lightning.cli"
