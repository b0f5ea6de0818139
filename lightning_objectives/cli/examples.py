"""The command ``init``, which copies examples into a folder of the user's."""

import argparse
import inspect
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightning_objectives
from lightning_objectives.cli.errors import stop

FOLDERS = ("existing_project", "digits")
"""The folders of the examples that are copied: a user's own project, and configs that plug into it."""
REPLACED = {
    "examples.existing_project.model": "model",
    "examples/existing_project/": "",
    "examples/digits/": "",
    "Run from the root of the repository.": "Run in this folder.",
}
"""What the copies say in place of the paths in the repository, where they lie in one folder."""


def init(args: list[str]) -> None:
    """Copy examples that run at once into a folder: a module, and configs that plug into it.

    The data are scikit-learn's digits, so nothing is downloaded. No file is replaced.
    """
    parser = argparse.ArgumentParser("lightning-objectives init", description=inspect.getdoc(init))
    parser.add_argument("directory", metavar="DIR", type=Path, help="the folder, made if it is not there")
    target = parser.parse_args(args[1:]).directory
    copies = _copies(_source())
    there = [name for name in copies if (target / name).exists()]
    if there:
        stop(f"{target} has {', '.join(there)} already, and init replaces no file. Choose another folder.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in copies.items():
            (target / name).write_text(text, "utf-8")
    except OSError as error:
        stop(f"cannot write to {target}: {error.strerror}.")
    print(f"wrote {len(copies)} files to {target}. To begin:\n\n  cd {target}")
    for words in ("plan baseline.yaml ema.yaml", "inspect baseline.yaml ema.yaml", "fit -c baseline.yaml -c ema.yaml"):
        print(f"  lightning-objectives {words}")


def _source() -> Any:
    """The examples: packed into an installed package, or beside it in the repository."""
    package = files(lightning_objectives)
    packed = package / "_examples"
    return packed if packed.is_dir() else Path(str(package)).parent / "examples"


def _copies(source: Any) -> dict[str, str]:
    """The text of each copy by the name of its file."""
    copies = {}
    for folder in FOLDERS:
        for file in sorted((source / folder).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py" if folder == "existing_project" else ".yaml"):
                text = file.read_text("utf-8")
                for old, new in REPLACED.items():
                    text = text.replace(old, new)
                copies[file.name] = text
    return copies
