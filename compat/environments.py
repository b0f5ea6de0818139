"""The environments, out of the bounds that stand in pyproject.toml."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
RUNNERS = ["hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "rich", "torch-uncertainty"]
"""Only run the tests: their versions are not what is tested."""
NEVER_LOWEST = {"torchjd"}
"""An extra that no test imports."""


def lowest() -> list[str]:
    """Every requirement with a lower bound, the extras' too, at exactly this bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + [line for name in ("cli", "plots", "multi", "examples") for line in extras[name]]
    bounds = {name: bound for name, bound in map(_bound, asked) if bound and name not in NEVER_LOWEST}
    return [f"{name}=={bound}" for name, bound in bounds.items()] + [f"pytorch-lightning=={bounds['lightning']}"]


def _bound(requirement: str) -> tuple[str, str]:
    name, _, bound = requirement.partition(">=")
    return name, bound


def _new(name: str) -> Path:
    python = FOLDER / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", FOLDER / name], check=True)
    return python


def _pip(python: Path, *words: str) -> None:
    # A cap that some machines set for all of pip would not give the newest.
    free = {**os.environ, "PIP_CONSTRAINT": os.devnull}
    subprocess.run([python, "-m", "pip", "install", "--quiet", *words], env=free, check=True)


def build_lowest() -> Path:
    """Each dependency at its lower bound."""
    python = _new("lowest")
    _pip(python, *lowest(), *RUNNERS)
    _pip(python, "--no-deps", "--editable", str(ROOT))
    return python


def build_newest() -> Path:
    """What a plain install gives today."""
    python = _new("newest")
    _pip(python, "--upgrade", "--upgrade-strategy", "eager", "--editable", f"{ROOT}[dev]")
    return python


def build_pytorch_lightning() -> Path:
    """``newest`` without ``lightning``: everything else is linked, not installed again."""
    build_newest()
    python = _new("pytorch_lightning")
    (source,), (target,) = (list((FOLDER / name).glob("lib/*/site-packages")) for name in ("newest", python.parts[-3]))
    for entry in source.iterdir():
        here = target / entry.name
        ours = re.fullmatch(r"lightning(-[\d.]+.*\.dist-info)?", entry.name)
        if not ours and not here.exists():
            here.symlink_to(entry)
    return python


NOT_RUN = {
    "lowest": dict.fromkeys(
        ("a_part_compiled_in_place", "a_part_compiled_late", "(compiled_once and place)"),
        "torch 2.6, 2.7 and 2.8 do not compile a part that is compiled in place while the criterion is caught; the "
        "results are right. With 2.14, and with `net.part = torch.compile(net.part)`, it is compiled",
    )
    | {"compiled_again_and_again": "torch 2.6 compiles a function around a wrapped head twice after the third step"},
    "pytorch_lightning": {"strangers": "torch-uncertainty, whose routine is trained there, needs `lightning`"},
}
"""Words of tests that are not run in an environment, and why."""

ENVIRONMENTS: dict[str, Callable[[], Path]] = {
    "lowest": build_lowest,
    "newest": build_newest,
    "pytorch_lightning": build_pytorch_lightning,
}
