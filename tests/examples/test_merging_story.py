"""The story of three fine-tunings at its smallest: every merge has its row, here and on the page."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from lightning_objectives.discovery import methods

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("merging_story", ROOT / "examples" / "stories" / "merging.py")
story = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(story)
MERGES = {cls.__name__ for room, cls in methods() if room == "merging"}


@pytest.fixture(scope="module")
def results():
    return story.run(seeds=1, epochs=1)


def rows(text, head):
    """The names of the rows of a table, by the head of its first column."""
    (table,) = re.findall(rf"^\| {re.escape(head)} .*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)


def test_every_merge_is_in_both_tables_and_on_the_page(results):
    page = (ROOT / "docs" / "stories" / "merging.md").read_text()
    for head in ("accuracy, %", "NLL"):
        here, there = rows(story.table(*results), head), rows(page, head)
        missing = MERGES - {word for name in here for word in re.findall(r"\w+", name)}
        assert not missing, f"add {missing} to METHODS of examples/stories/merging.py"
        assert sorted(there) == sorted(here), "run examples/stories/merging.py, and put its tables on the page"


def test_a_row_shows_what_was_measured(results):
    beside, merged, _ = results
    for name, (score,) in (beside | merged).items():
        shares = [len(story.TASKS[task]) for task in story.TASKS]  # about the same number of images for each class
        mean = sum(share * value for share, value in zip(shares, score.accuracy)) / sum(shares)
        assert score.accuracy[-1] == pytest.approx(mean, abs=1), name
        line = next(line for line in story.table(*results).splitlines() if line.startswith(f"| {name} |"))
        assert [float(cell) for cell in line.split("|")[2:6]] == pytest.approx(score.accuracy, abs=0.05)
    for place, task in enumerate(story.TASKS):
        others = [beside[f"fine-tuned on {name}"][0].accuracy[place] for name in story.TASKS if name != task]
        assert beside[f"fine-tuned on {task}"][0].accuracy[place] > max(others)


def test_the_scores_are_those_of_the_validation_part(tmp_path):
    data = story.lo.DigitsDataModule(val_fraction=0.2, test_fraction=0.2, seed=1)
    data.setup()
    images, target = data.test.tensors
    lab = story.Lab(1, tmp_path, epochs=1)
    net = story.network()
    net.load_state_dict(torch.load(lab.base))
    nll = torch.nn.functional.cross_entropy(net(images), target, reduction="none").detach()
    score = lab.of_file(lab.base)
    groups = [target <= 3, (target > 3) & (target < 7), target >= 7, target >= 0]
    assert score.nll == pytest.approx([nll[group].mean().item() for group in groups])
    assert lab.score(net.state_dict()) != pytest.approx(-score.nll[-1])  # of the selection part


def test_a_merge_is_the_formula_of_its_method(tmp_path):
    """The plain mean, and the chosen scale against a slow loop over state dicts."""
    lab = story.Lab(0, tmp_path, epochs=1)
    base, states = torch.load(lab.base), [torch.load(file) for file in lab.files]
    mean = torch.load(lab.merged(story.lo.UniformSoup()))
    for name, tensor in mean.items():
        assert torch.allclose(tensor, sum(state[name] for state in states) / 3, atol=1e-6)
    sums = {
        scale: {n: base[n] + scale * sum(state[n] - base[n] for state in states) for n in base}
        for scale in story.SCALES
    }
    best = max(story.SCALES, key=lambda scale: lab.score(sums[scale]))
    chosen = torch.load(lab.scale_chosen(story.lo.TaskArithmetic))
    assert all(torch.allclose(chosen[name], sums[best][name], atol=1e-6) for name in base)


@pytest.mark.slow
def test_the_command_writes_the_same_numbers_again(results, tmp_path, monkeypatch, capsys):
    out = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["merging.py", "--seeds", "1", "--epochs", "1", "--out", str(out)])
    monkeypatch.setattr(story.torch, "set_num_threads", lambda threads: None)
    story.main()
    written = out.read_text()
    assert written in capsys.readouterr().out
    nll = written.index("| NLL")
    assert written[nll:] == story.table(*results)[story.table(*results).index("| NLL") :]
