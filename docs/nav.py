"""The navigation, made from the pages that exist when the site is built."""

from pathlib import Path
from typing import Any

from docs.cards import ROOMS, room_title

GUIDES = (
    ("Distillation", "distillation"),
    ("Averages and checkpoints", "averaging"),
    ("Merging", "merging"),
    ("Calibration", "calibration"),
    ("Label noise", "label_noise"),
    ("Several tasks", "multi_task"),
    ("Fine-tuning and LoRA", "fine_tuning"),
    ("Several GPUs", "distributed"),
    ("The command", "command"),
    ("Write your own method", "own_method"),
    ("Coming from other libraries", "coming_from"),
    ("Questions and answers", "faq"),
)
RUNS = (
    ("All five on Fashion-MNIST", "fashion_mnist.md"),
    ("Three fine-tunings, every merge", "stories/merging.md"),
    ("Any width of an average", "stories/ema_widths.md"),
    ("An overconfident network, every calibrator", "stories/calibration.md"),
    ("Shifted data, every adapter", "stories/adaptation.md"),
)
"""Pages that each tell one run, or a few."""
DEVELOPERS = (
    ("Summary", "developers.md"),
    ("Design", "design.md"),
    ("Conformance", "conformance.md"),
    ("Performance", "performance.md"),
    ("Performance on a GPU", "performance_gpu.md"),
    ("Compatibility", "compatibility.md"),
    ("Third-party modules", "third_party.md"),
    ("Safety of files", "safety.md"),
    ("What each system changes", "what_changes.md"),
)


def on_config(config: Any) -> Any:
    """Set the navigation."""
    config["nav"] = navigation(Path(config["docs_dir"]))
    return config


def navigation(root: Path) -> list[Any]:
    """The navigation over the pages in a folder."""
    methods = root / "methods"
    known = [room for room in ROOMS if (methods / room).is_dir()]
    rooms = [
        *known,
        *sorted(folder.name for folder in methods.iterdir() if folder.is_dir() and folder.name not in known),
    ]
    listed = [{room_title(room): _pages(methods / room, root)} for room in rooms]
    guides = [{title: f"guides/{name}.md"} for title, name in GUIDES]
    return [
        {"Home": "index.md"},
        {"Quick start": "quickstart.md"},
        {"Methods": ["methods/index.md", *listed]},
        {"Guides": ["guides/index.md", *guides[:-1], {"Plain loops": "plain_loops.md"}, guides[-1]]},
        {"Evidence": ["evidence/index.md", *({title: page} for title, page in RUNS), "evidence/budget.md"]},
        {"Reference": _pages(root / "package", root)},
        {"For developers": [{title: page} for title, page in DEVELOPERS]},
    ]


def _pages(folder: Path, root: Path) -> list[str]:
    pages = sorted(folder.glob("*.md"), key=lambda page: (page.stem != "index", page.stem.lower()))
    return [str(page.relative_to(root)) for page in pages]
