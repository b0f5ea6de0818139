"""A copy of the tests as a project writes them that has ``pytorch_lightning`` and not ``lightning``."""

import re
import shutil
from pathlib import Path

from compat.environments import FOLDER, ROOT

RENAMED = [
    (r"\bimport lightning as L\b", "import pytorch_lightning as L"),
    (r"\blightning\.pytorch\b", "pytorch_lightning"),
    (r"\blightning\.fabric\b", "lightning_fabric"),
    (r"\bL\.pytorch\.", "L."),
    (r"\"lightning\.", '"pytorch_lightning.'),  # the names of modules that tests make
]


def copy() -> Path:
    """Tests, examples and documents under the other name; the package as it is, but for what trains in tests."""
    target = FOLDER / "pytorch_lightning_project"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("tests", "examples", "benchmarks", "docs", "lightning_objectives", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "site", "build"))
        else:
            shutil.copy(source, target)
    for path in ROOT.glob("*.md"):
        shutil.copy(path, target)
    for path in target.rglob("*"):
        if path.suffix in (".py", ".yaml") and path.relative_to(target).parts[0] in (
            "tests",
            "examples",
            "benchmarks",
            "docs",
        ):
            path.write_text(renamed(path.read_text()))
        elif path.suffix == ".py" and path.is_relative_to(target / "lightning_objectives" / "testing" / "conformance"):
            path.write_text(renamed(path.read_text()))  # trains modules of its own, as tests do
    mixins = target / "lightning_objectives" / "mixins.py"  # the one docstring that imports Lightning
    mixins.write_text(mixins.read_text().replace(">>> import lightning as L", ">>> import pytorch_lightning as L"))
    return target


def renamed(text: str) -> str:
    """A source text with the other name of Lightning."""
    for old, new in RENAMED:
        text = re.sub(old, new, text)
    return text
