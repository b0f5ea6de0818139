"""``import lightning_objectives as lo`` gives every public name, lazily and typed."""

import ast
import os
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import lightning_objectives as lo

PACKAGE = Path(lo.__file__).parent
ROOT = PACKAGE.parent
EXPORTS = {
    f"{lo.__name__}.{file.parent.name if file.name == '__init__.py' else file.stem}": ast.literal_eval(node.value)
    for file in sorted([*PACKAGE.glob("[!_]*/__init__.py"), *PACKAGE.glob("[!_]*.py")])
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
}
"""The public modules directly in the package, with the names that each exports."""
APART = {"lightning_objectives.testing"}
"""Modules whose names are not at the top."""


def exported():
    return [(module, name) for module, names in EXPORTS.items() if module not in APART for name in names]


def test_every_public_name_is_at_the_top():
    assert {"lightning_objectives.callbacks", "lightning_objectives.mixins"} < EXPORTS.keys()
    for module, name in exported():
        assert getattr(lo, name) is getattr(import_module(module), name)
    assert {name for _, name in exported()} <= set(dir(lo))


def test_no_name_is_exported_twice():
    parts = [file.stem for file in PACKAGE.iterdir()]
    count = Counter([*(name for _, name in exported()), *parts])
    twice = {name: [module for module, other in exported() if other == name] for name, n in count.items() if n > 1}
    assert not twice, f"One name means one thing: rename all but one of {twice}."


def test_type_checkers_see_every_module():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    starred = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"}
    rooms = {f"{lo.__name__}.{room}" for room in lo.discovery.ROOMS}
    assert starred == (EXPORTS.keys() | rooms) - APART


def test_modules_are_at_the_top_too():
    assert lo.kinds is sys.modules["lightning_objectives.kinds"]
    assert lo.testing.assert_laws


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'lightning_objectives' has no attribute 'EMAA'") as error:
        _ = lo.EMAA
    assert (error.value.name, error.value.obj) == ("EMAA", lo), "from these Python suggests the nearest name"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("line", "not_imported"),
    [
        ("dir(lo)", ["torch", "lightning", "pytorch_lightning"]),
        ("lo.EMA", ["lightning", "pytorch_lightning", "torchmetrics", "timm"]),
        ("lo.EMACallback", ["timm", "jsonargparse"]),
    ],
)
def test_a_name_imports_only_what_it_needs(line, not_imported):
    code = f"import sys, lightning_objectives as lo; {line}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(not_imported) & set(run.stdout.split())


@pytest.mark.slow
def test_mypy_checks_what_users_write(tmp_path):
    lines = {
        "lo.EMA(decay=0.9)": "",
        "lo.AverageWeights(lo.EMA(), start_step=1)": "",
        "lo.EMACallback(decay=0.9, start_step=1)": "",
        "lo.EMA(decya=0.9)": '"decya" for "EMA"',
        "lo.AverageWeights(lo.EMA(), start_stepp=1)": '"start_stepp" for "AverageWeights"',
        "lo.DualHeadKDCallback(teecher=1)": '"teecher" for "DualHeadKDCallback"',
        'lo.EMACallback(decay="high")': '"decay" to "EMACallback" has incompatible type "str"',
        "lo.EMAA()": 'Module has no attribute "EMAA"',
        "class Mine(lo.EMAMixin): ...": "lo.EMAMixin",
        "lo.kinds.Losss": '"Losss"',
    }
    file = tmp_path / "users.py"
    file.write_text("import lightning_objectives as lo\n" + "\n".join(lines))
    words = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={ROOT / '.mypy_cache'}", str(file)]
    run = subprocess.run(words, cwd=ROOT, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True)
    for number, (line, expected) in enumerate(lines.items(), 2):
        errors = [text for text in run.stdout.splitlines() if f"users.py:{number}: error" in text]
        assert bool(errors) == bool(expected), (line, run.stdout, run.stderr)
        assert not expected or expected in errors[0]
