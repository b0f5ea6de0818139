"""What the pages show of a method, read from its class, its docstrings and the verdicts of the benchmarks."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from docs.roles import CARD, markdown
from lightning_objectives.discovery import methods

HERE = Path(__file__).parent
NOT_MEASURED = "not measured yet"
ROOMS = {
    "batches": "Batch transforms",
    "heads": "Heads",
    "losses": "Losses",
    "weighting": "Sample weights",
    "distillation": "Distillation",
    "regularizers": "Added terms",
    "combination": "Several tasks or terms",
    "perturbations": "Perturbed weights",
    "gradients": "Gradient transforms",
    "surgery": "Changed layers",
    "averaging": "Weight averages",
    "schedules": "Learning rate schedules",
    "merging": "Merged checkpoints",
    "calibration": "Calibration",
    "prediction_sets": "Prediction sets",
    "adaptation": "Adaptation at test time",
    "surveys": "Surveys of the data",
    "metrics": "Metrics",
}
"""The headings of the rooms. A room that is missing here is named by its folder."""


def room_title(room: str) -> str:
    """The heading of a room.

    >>> room_title("losses"), room_title("new_room")
    ('Losses', 'New room')
    """
    return ROOMS.get(room, room.replace("_", " ").capitalize())


@dataclass(frozen=True)
class Card:
    """What is known of one method."""

    room: str
    cls: type[Any]

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.cls.__name__

    @property
    def page(self) -> str:
        """The page of the method, in the sources of the site."""
        return f"methods/{self.room}/{self.name}.md"

    @property
    def callback(self) -> str:
        """The callback that places it; LogMetrics for a metric, and empty for what needs none."""
        return "LogMetrics" if self.room == "metrics" else getattr(self.cls, "callback", "")

    @property
    def family(self) -> str:
        """The problem that it is for; of a method without a family, the heading of its room."""
        return getattr(self.cls, "family", "") or room_title(self.room).lower()

    @property
    def verdict(self) -> str:
        """What the benchmarks of this project found."""
        return verdicts().get(self.name, NOT_MEASURED)

    @cached_property
    def summary(self) -> str:
        """The first sentence of the docstring."""
        return prose((inspect.getdoc(self.cls) or "").split("\n\n")[0])

    @cached_property
    def parts(self) -> dict[str, str]:
        """The parts of the card by heading, as ``Cost``: of the class, or else of its functions."""
        found: dict[str, str] = {}
        function = getattr(self.cls, "function", None)
        for thing in dict.fromkeys([self.cls, *([function] if function else []), *self.functions()]):
            for head, text in sections(inspect.getdoc(thing) or "").items():
                if head not in found or (head == "Paper" and "http" not in found[head]):  # "see `that_function`"
                    found[head] = prose(text)
        return found

    def functions(self) -> list[Callable[..., Any]]:
        """The functions of the method's own file that its docstring refers to."""
        file = vars(sys.modules[self.cls.__module__])
        names = re.findall(r":func:`(\w+)`", inspect.getdoc(self.cls) or "")
        return [file[name] for name in dict.fromkeys(names) if name in file]

    @property
    def url(self) -> str:
        """The address of the paper."""
        found = re.search(r"https?://\S*[^\s.,;)]", self.parts.get("Paper", ""))
        return found[0] if found else ""

    @property
    def citation(self) -> str:
        """The paper in two words: its first authors and its year."""
        text = self.parts.get("Paper", "").split("http")[0]
        authors, year = text.split(",")[0], re.findall(r"\b(?:19|20)\d\d\b", text)
        return " ".join(["Paper" if len(authors) > 40 else authors, *year[:1]])

    def first(self, head: str) -> str:
        """The first sentence of a part of the card.

        >>> next(card for card in cards() if card.name == "FocalLoss").first("Cost")
        'that of cross entropy.'
        """
        return first_sentence(self.parts.get(head, ""))

    @property
    def plot(self) -> tuple[str, str]:
        """The heading and the picture of the benchmark that judges the method; empty without one."""
        for section in re.split(r"^## ", (HERE / "evidence" / "index.md").read_text(), flags=re.MULTILINE)[1:]:
            picture = re.search(r"!\[[^\]]*\]\(([^)]+)\)", section)
            if picture and re.search(rf"^\*\*`{self.name}`: ", section, re.MULTILINE):
                return section.splitlines()[0], picture[1]
        return "", ""


@cache
def cards() -> tuple[Card, ...]:
    """The cards of all methods."""
    return tuple(Card(room, cls) for room, cls in methods())


@cache
def verdicts() -> dict[str, str]:
    """The verdicts of the benchmarks by the name of the method."""
    found: dict[str, str] = json.loads(files("lightning_objectives").joinpath("evidence.json").read_text("utf-8"))
    return found


def sections(docstring: str) -> dict[str, str]:
    r"""The parts of a docstring with a heading of the card, by heading.

    >>> sections("It works.\n\nWhen to use: often,\nor more.\nCost: none.\n\nArgs:\n    x: y")
    {'When to use': 'often,\nor more.', 'Cost': 'none.'}
    """
    found: dict[str, str] = {}
    head = ""
    for line in docstring.splitlines():
        if start := re.match(rf"({CARD}):\s*(.*)", line):
            head = start[1]
            found[head] = start[2]
        elif not line.strip():
            head = ""
        elif head:
            found[head] += "\n" + line
    return found


def first_sentence(text: str) -> str:
    """The first sentence of a text, which must not end within an abbreviation or a formula.

    >>> first_sentence("One pass, e.g. of $a. B$ data. Another.")
    'One pass, e.g. of $a. B$ data.'
    """
    for end in re.finditer(r"[.:;](?=\s+[A-Z`]|$)", text):
        sentence = text[: end.end()]
        if sentence.count("$") % 2 == 0 and sentence.count("(") == sentence.count(")"):
            return re.sub(r"[:;]$", ".", sentence)
    return text


def prose(text: str) -> str:
    """A paragraph of a docstring as one line of Markdown."""
    return " ".join(markdown(text).split())


def linked(text: str, here: str) -> str:
    """The text, in which the names of methods lead to their pages; ``here`` is the page that it stands on."""
    pages = {card.name: card.page for card in cards()}
    up = "../" * here.count("/")

    def link(found: re.Match[str]) -> str:
        page = pages.get(found[1])
        return found[0] if page is None or page == here else f"[{found[0]}]({up}{page})"

    return re.sub(r"`(\w+)`(?!\])", link, text)


def badge(text: str, kind: str = "") -> str:
    """A small coloured label."""
    return f'<span class="lo-badge lo-{(kind or text).replace(" ", "-")}">{text}</span>'
