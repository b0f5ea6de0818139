"""What the pages promise: names that exist, a template that keeps the laws, a page for every name."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from docs import method_table, problems, step_picture
from docs.cards import cards
from lightning_objectives import callbacks
from lightning_objectives.discovery import methods
from lightning_objectives.testing import assert_laws

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "EXEMPLARS.md", "docs/index.md", "docs/design.md", "docs/plain_loops.md"]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_code_on_a_page_imports_what_exists(page):
    own = {"lightning_objectives.losses"}  # of the template, which is no part of the package
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("lightning_objectives"):
                module = importlib.import_module(node.module)
                missing = [a.name for a in node.names if not hasattr(module, a.name) and node.module not in own]
                assert not missing, f"{page}: {node.module} has no {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_on_a_page_exist(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text) if not page.startswith("docs/") else []  # mkdocs checks its own
    paths = re.findall(r"`((?:lightning_objectives|tests|docs|benchmarks)/[\w/]+\.(?:py|txt|md))`", text)
    for path in links + paths:
        assert (ROOT / path).exists(), f"{page} speaks of {path}"


def test_the_badges_are_true():
    text, project = (ROOT / "README.md").read_text(), (ROOT / "pyproject.toml").read_text()
    (python,) = re.findall(r"badge/python-([\d.]+)%2B", text)
    (license,) = re.findall(r"badge/license-([\w.-]+)-blue", text)
    assert f'requires-python = ">={python}"' in project
    assert f'license = "{license.replace("--", "-")}"' in project


@pytest.mark.filterwarnings("ignore")  # what Lightning recommends to a first training: loggers, workers
def test_the_first_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    exec(compile(blocks("README.md")[0], "README.md", "exec"), names)
    assert set(names["Net"]().state_dict()) == {"net.weight", "net.bias"}


def test_the_table_of_problems_is_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert text == problems.in_readme(text), "run `python -m docs.problems`"


def test_hand_made_tables_name_methods_that_exist():
    known = {card.name for card in cards()}
    named = {name for problem in problems.PROBLEMS for name in (problem.first, *problem.others)}
    assert named <= known, f"docs/problems.py names {named - known}"
    assert {name for _, names, _ in step_picture.STAGES for name in names} <= set(callbacks.__all__)


def test_the_picture_of_the_step_is_up_to_date():
    assert step_picture.PICTURE.read_text() == step_picture.picture(), "run `python -m docs.step_picture`"


def test_the_code_of_plain_loops_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "plain_loops"}
    for block in blocks("docs/plain_loops.md"):
        exec(compile(block, "docs/plain_loops.md", "exec"), names)
    assert names["loss_of"].counts == tuple(names["data"].tensors[1].bincount().tolist())
    assert (tmp_path / "merged.pt").exists()
    assert names["probabilities"].shape == (64, 3)


def test_the_template_keeps_the_laws(tmp_path, monkeypatch):
    (template,) = [block for block in blocks("CONTRIBUTING.md") if block.startswith('"""')]
    path = tmp_path / "template.py"
    path.write_text(template)
    monkeypatch.setitem(sys.modules, "template", module := load(path))
    assert_laws(module.FocalLoss())


def test_the_readme_names_every_method():
    text = (ROOT / "README.md").read_text()
    assert text == method_table.in_readme(text), "run `python -m docs.method_table`"
    assert not [cls.__name__ for _, cls in methods() if f"`{cls.__name__}`" not in text]


def test_every_public_name_has_a_page_and_a_docstring():
    gen = load(ROOT / "docs" / "gen.py")
    made = gen.pages()
    assert not [*gen.without_page(made), *gen.without_docstring()]
    name, _ = next(gen.public())
    assert f"{name} is exported, but has no page." in list(gen.without_page({}))
