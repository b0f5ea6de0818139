"""How the house is built: which folder may import which, how long a file is, and what is named once."""

import ast
import re
from pathlib import Path

import pytest
from source import lines_of_code

import lightning_objectives
import lightning_objectives.discovery
from lightning_objectives import callbacks, kinds

PACKAGE = Path(lightning_objectives.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {kind.room for kind in kinds.KINDS} | {"schedules", "metrics"}
LAYERS = (
    {"signals"},
    {"shapes"},
    {"fitted"},
    {"records"},
    {"kinds"},
    {"_files"},
    ROOMS,
    {"discovery"},
    {"_trainer"},
    {"data", "_weights"},
    {"_snapshots", "_step"},
    {"callbacks"},
    {"mixins", "loops", "testing"},
    {"inspection"},
    {"cli"},
)
"""The folders and files of the package, from the lowest layer to the highest; each may import those before it."""
LINES = 250
"""The most lines of code in a file; docstrings, comments and blank lines do not count."""
NAMES_METHODS = {"callbacks/named.py", "mixins.py"}
"""Shared files that may name single methods: each puts a method and its callback together."""


def module_of(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def place_of(module):
    """The folder or file directly in the package that a module belongs to; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imports_of(file):
    """Each import of this package in a file, also inside of functions: its line, the module and the name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (node.lineno, inner, "") if inner in MODULES else (node.lineno, node.module, alias.name)


def checked_files():
    return [file for file in FILES if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", checked_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    mine = place_of(module_of(file))
    assert mine in height, f"{mine} has no layer: give it one in LAYERS."
    for line, module, name in imports_of(file):
        where, theirs = f"{file.relative_to(PACKAGE)}:{line}", place_of(module)
        assert not name.startswith("_"), f"{where} takes {name}, which is private to {module}: make its name public."
        if not theirs or theirs == mine:
            continue
        below = height[theirs] < height[mine] or {theirs, mine} <= ROOMS
        assert below, f"{where} imports {module}, which is not below {mine}."
        hidden = [part for part in module.split(".")[2:] if part.startswith("_")]
        assert not hidden, f"{where} imports {module}, which is private to {theirs}."


def test_no_file_imports_itself_by_way_of_others():
    graph = {module: {target for _, target, _ in imports_of(file)} - {module} for module, file in MODULES.items()}
    done, path = set(), []

    def walk(module):
        if module in path:
            raise AssertionError("A cycle of imports: " + " -> ".join([*path[path.index(module) :], module]))
        if module in done:
            return
        path.append(module)
        for target in sorted(graph.get(module, ())):
            walk(target)
        done.add(path.pop())

    for module in sorted(graph):
        walk(module)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_is_short_enough_to_read(file):
    count = lines_of_code(file)
    assert count <= LINES, f"{file.relative_to(PACKAGE)} has {count} lines of code, more than {LINES}: split it."


def test_shared_code_names_no_method():
    """Only what puts a method and its callback together may import a method's class."""
    methods = {cls.__name__ for _, cls in lightning_objectives.discovery.methods()}
    for file in FILES:
        mine, path = place_of(module_of(file)), str(file.relative_to(PACKAGE))
        if mine in ROOMS or mine == "testing" or path in NAMES_METHODS or not mine:
            continue
        for line, module, name in imports_of(file):
            assert name not in methods, f"{path}:{line} names the method {name} of {module}."


def test_kinds_and_callbacks_name_each_other():
    for kind in kinds.KINDS:
        assert issubclass(kind, getattr(callbacks, kind.callback).kind)


def test_a_callback_names_its_methods():
    from lightning_objectives.averaging import EMA, SWA
    from lightning_objectives.gradients import ComponentwiseGradClip, OrthogonalGradient

    rules = (EMA(), SWA())
    assert callbacks.AverageWeights(rules).methods() == list(rules)
    transforms = (OrthogonalGradient(), ComponentwiseGradClip(max_norm=0.5))
    assert callbacks.TransformGradients(transforms).methods() == list(transforms)


def test_the_map_is_the_same_in_readme_and_design_and_names_every_folder():
    block = re.compile(rf"```\n({PACKAGE.name}/\n.*?)```", re.DOTALL)
    readme, design = (block.search((PACKAGE.parent / page).read_text())[1] for page in ("README.md", "docs/design.md"))
    assert readme.startswith(design)
    named = {word.rstrip("/") for line in design.splitlines() for word in line.split() if word.endswith(("/", ".py"))}
    there = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__pycache__"} <= named, f"the map lacks {sorted(there - named)}"
