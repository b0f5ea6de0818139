"""What our docstrings say in Sphinx's words, said in Markdown, before griffe parses them."""

import re
from textwrap import dedent, indent
from typing import Any

import griffe

from lightning_objectives.discovery import ROOMS

CARD = "When to use|Cost|Interactions|Paper|Differs from the paper|Shapes of `update`"
"""The headings of a method's card, each of which begins a paragraph."""


class Roles(griffe.Extension):
    """Gives each docstring to :func:`markdown`."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute once it is loaded."""
        if obj.docstring:
            text = obj.docstring.value
            if has_page(obj.path):  # its parts stand on top of the method's page
                text = without_card(text)
            obj.docstring.value = markdown(text)


def has_page(path: str) -> bool:
    """Whether an object lies in the file of a method.

    >>> has_page("lightning_objectives.losses.focal.FocalLoss"), has_page("lightning_objectives.callbacks.refer.Refer")
    (True, False)
    """
    _, room, file, *_ = [*path.split("."), "_", "_"]
    return room in ROOMS and not file.startswith("_")


def without_card(docstring: str) -> str:
    r"""A docstring without the parts of its card.

    >>> without_card("It works.\n\nWhen to use: often,\nor more.\n\nPaper: A, https://b.\n\nArgs:\n    x: y")
    'It works.\n\nArgs:\n    x: y'
    """
    kept: list[str] = []
    inside = False
    for line in docstring.splitlines():
        inside = bool(re.match(rf"({CARD}):", line)) or (inside and bool(line.strip()))
        if not inside and (line.strip() or not kept or kept[-1].strip()):
            kept.append(line)
    return "\n".join(kept).rstrip()


def markdown(docstring: str) -> str:
    r"""Formulas, names, doctests and the headings of the card in Markdown.

    >>> print(markdown("Mean of ``x``: :math:`\\bar x`, see :func:`mean`,\n\n.. math::\n    a \\\\\n    b\n\nwith b."))
    Mean of `x`: $\bar x$, see `mean`,
    <BLANKLINE>
    $$
    a \\
    b
    $$
    <BLANKLINE>
    with b.
    """
    text = re.sub(r":math:`([^`]+)`", lambda found: f"${' '.join(found[1].split())}$", docstring)
    text = re.sub(r"^( *)\.\. math::\s*\n((?:\1 +.*\n?|\s*\n)+)", _display, text, flags=re.MULTILINE)
    text = re.sub(r":(?:func|class|data|meth|mod):`(?:~[\w.]+\.)?([^`]+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"^( *)>>> (?:.+\n?)+", _fenced, text, flags=re.MULTILINE)
    return re.sub(rf"^({CARD}):", r"\n**\1.**", text, flags=re.MULTILINE)


def _display(found: re.Match[str]) -> str:
    return indent(f"$$\n{dedent(found[2]).strip()}\n$$\n\n", found[1])


def _fenced(found: re.Match[str]) -> str:
    return f"{found[1]}```pycon\n{found[0].rstrip()}\n{found[1]}```\n"
