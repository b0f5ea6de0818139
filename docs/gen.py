"""Writes the sources of the site: the hand-written pages, and one page for each method and part of the package.

Run it as ``python -m docs.gen OUT``. The generated pages consist of docstrings, and of snippets that a test runs. A
public name without a page or a docstring is an error.
"""

import importlib
import inspect
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import lightning_objectives as package
from docs import gallery, problems, step_picture
from docs.cards import Card, room_title
from docs.method_page import above
from lightning_objectives.discovery import ROOMS, methods
from lightning_objectives.signals import SIGNALS

HERE = Path(__file__).parent
WIDE = (
    "conformance.md",
    "performance.md",
    "performance_gpu.md",
    "third_party.md",
    "evidence/index.md",
    "stories/merging.md",
    "stories/ema_widths.md",
    "stories/calibration.md",
    "stories/adaptation.md",
)
"""The pages with wide tables, which take the room of the table of contents too."""


def write(out: Path) -> None:
    """Write the folder with the site's sources anew."""
    generated = pages()
    if faults := [*without_page(generated), *without_docstring()]:
        raise SystemExit("\n".join(["docs:", *faults]))
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(HERE, out, ignore=shutil.ignore_patterns("*.py", "site", "__pycache__", "*.html"))
    for path, names in generated.items():
        page = out / path
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n\n".join([*beginning(path), *(f"::: {name}" for name in names)]) + "\n")
    (out / gallery.PAGE).write_text(gallery.page())
    for page in out.glob("*.md"):
        page.write_text(filled(page.read_text()))
    for name in WIDE:
        page = out / name
        page.write_text(f"---\nhide: [toc]\n---\n\n{page.read_text()}")


def filled(text: str) -> str:
    """A hand-written page, with what is made for it: the table of problems and the picture of the step."""
    text = text.replace(
        "<!-- problems -->", f'<div class="lo-cards lo-problems" markdown>\n\n{problems.table()}\n\n</div>'
    )
    # A picture in a file follows the system's colours; in the page it follows the site's switch.
    peers = re.sub(r"<style>.*?</style>", "", (HERE / "images" / "peers.svg").read_text(), flags=re.DOTALL).strip()
    text = re.sub(r"!\[[^\]]*\]\(images/peers\.svg\)", lambda _: peers, text)
    return text.replace("<!-- step -->", step_picture.inline())


def title(path: str) -> str:
    """The title of a page: the name of the room, or of the file."""
    page = Path(path)
    return room_title(page.parent.name) if page.stem == "index" else page.stem


def beginning(path: str) -> list[str]:
    """What stands above the docstrings of a page: how to use the method, or the docstring of the room or the part."""
    room, name = Path(path).parent.name, Path(path).stem
    if name == "index":
        return [f"# {title(path)}", _docstring(room), *gallery.of_room(room, path)]
    if name == "kinds":
        rows = [f"| `{s.name}` | {s.shape} | {s.source} | {s.doc} |" for s in SIGNALS.values()]
        table = ["| Name | Shape | Comes from | What it is |", "| --- | --- | --- | --- |", *rows]
        return ["# kinds", _docstring(name), "## Signals", "\n".join(table)]
    if room == "package":
        return [f"# {name}", _docstring(name)]
    return above(Card(room, getattr(importlib.import_module(f"{package.__name__}.{room}"), name)))


def _docstring(part: str) -> str:
    options = "    options: { members: false, show_root_heading: false, show_source: false }"
    return f"::: {package.__name__}.{part}\n{options}"


def pages() -> dict[str, list[str]]:
    """The generated pages, with the full names of what each documents: one page for each method, room and part."""
    generated: dict[str, list[str]] = {}
    for room, cls in methods():
        names = [f"{cls.__module__}.{name}" for name in defined_in(sys.modules[cls.__module__], first=cls.__name__)]
        generated[f"methods/{room}/{cls.__name__}.md"] = names
    documented = _objects(generated)
    for name, part in parts():
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", [] if part.ispkg else defined_in(module))
        if part.name in ROOMS:  # beside its methods a room may export more
            rest = [symbol for symbol in exported if id(getattr(module, symbol)) not in documented]
            if exported:
                generated[f"methods/{part.name}/index.md"] = [f"{name}.{symbol}" for symbol in rest]
        elif exported:
            generated[f"package/{name.partition('.')[2]}.md"] = [f"{name}.{symbol}" for symbol in exported]
    return generated


def parts() -> Iterator[tuple[str, pkgutil.ModuleInfo]]:
    """The modules and folders directly in the package, and the folders inside of those that are no rooms."""
    for part in pkgutil.iter_modules(package.__path__):
        if part.name.startswith("_"):
            continue
        name = f"{package.__name__}.{part.name}"
        yield name, part
        if part.ispkg and part.name not in ROOMS:
            inner = pkgutil.iter_modules(importlib.import_module(name).__path__)
            yield from ((f"{name}.{sub.name}", sub) for sub in inner if sub.ispkg)


def defined_in(module: ModuleType, *, first: str = "") -> list[str]:
    """The public classes and functions of a module in the order of the file, after the one that must come first."""
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]
    return sorted(names, key=lambda name: name != first)


def public() -> Iterator[tuple[str, object]]:
    """Everything that a module of the package exports in ``__all__``, with its full name."""
    for part in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if "._" not in part.name:
            module = importlib.import_module(part.name)
            for name in getattr(module, "__all__", ()):
                yield f"{part.name}.{name}", getattr(module, name)


def without_page(generated: dict[str, list[str]]) -> Iterator[str]:
    """Errors for the public names that are on no page."""
    documented = _objects(generated)
    return (f"{name} is exported, but has no page." for name, value in public() if id(value) not in documented)


def _objects(generated: dict[str, list[str]]) -> set[int]:
    """The identities of the objects that the pages document."""
    paths = [name.rpartition(".") for names in generated.values() for name in names]
    return {id(getattr(importlib.import_module(module), name)) for module, _, name in paths}


def without_docstring() -> Iterator[str]:
    """Errors for the public names without a docstring."""
    return (f"{name} has no docstring." for name, value in public() if not inspect.getdoc(value))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
