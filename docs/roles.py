"""What our docstrings say in Sphinx's words, said in Markdown, before griffe parses them."""

import re
from textwrap import dedent, indent
from typing import Any

import griffe

CARD = "When to use|Cost|Interactions|Paper|Differs from the paper|Shapes of `update`"
"""The headings of a method's card, each of which begins a paragraph."""


class Roles(griffe.Extension):
    """Gives each docstring to :func:`markdown`."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute once it is loaded."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


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
