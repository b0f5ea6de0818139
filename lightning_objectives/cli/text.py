"""Docstrings as text for a terminal: without marks, roles and LaTeX, and no wider than 80 columns."""

import re
import textwrap
from collections.abc import Iterator

from lightning_objectives.cli.formulas import plain_formula

WIDTH = 80
_FORMULA = re.compile(r":math:`([^`]*)`")
_BEGINS = re.compile(r" *(?:[-*] |\d+\. |(?:``|\w)[^:.]{0,40}:(?: |$))")
"""The first line of an item, of an argument, or of a part of a card."""


def readable(docstring: str) -> str:
    r"""A docstring for a terminal.

    >>> print(readable("Uses :math:`\\alpha^2` of :func:`~a.mean`, ``x``,\n\n.. math::\n    \\frac{a + b}{c}"))
    Uses α² of mean, x,
    <BLANKLINE>
        (a + b)/c
    """
    text = re.sub(r"^( *)\.\. math::\n((?:\s*\n)*(?:\1 +\S.*(?:\n|$))+)", _block, docstring, flags=re.MULTILINE)
    text = re.sub(_FORMULA, lambda found: plain_formula(" ".join(found[1].split())), text)
    return "\n\n".join(line for block in re.split(r"\n\s*\n", without_marks(text)) for line in _wrapped(block))


def help_text(text: str) -> str:
    r"""What a parser makes of docstrings, without marks; a formula that is not known, of the user's own, stays.

    >>> help_text("gamma  :math:`\\gamma \\ge 0` in ``x``, :math:`\\mine`")
    'gamma  γ ≥ 0 in x, \\mine'
    """
    return without_marks(re.sub(_FORMULA, _formula, text))


def _formula(found: re.Match[str]) -> str:
    try:
        return plain_formula(" ".join(found[1].split()))
    except ValueError:
        return found[0]


def without_marks(text: str) -> str:
    """Take the marks of reStructuredText out of a text.

    >>> without_marks("the :class:`~a.b.Mean` of ``x``, see :func:`mean`")
    'the Mean of x, see mean'
    """
    text = re.sub(r":\w+:`~[\w.]*?(\w+)`", r"\1", text)
    return re.sub(r"(?::\w+:)?`+([^`]*)`+", r"\1", text)


def indented(text: str, first: str = "", rest: str = "") -> list[str]:
    """The lines of a paragraph."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _block(found: re.Match[str]) -> str:
    """A formula in lines of its own."""
    formula = plain_formula(" ".join(found[2].split()))
    return "\n".join(indented(formula, f"{found[1]}    ", f"{found[1]}      ")) + "\n"


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _wrapped(block: str) -> Iterator[str]:
    """The lines of a block without empty lines, reflowed unless they are code or a table."""
    lines = block.split("\n")
    if any(line.lstrip().startswith((">>>", "|", "::")) for line in lines) or all(len(line) <= WIDTH for line in lines):
        yield block
        return
    items: list[list[str]] = []
    for line in lines:
        if items and not _BEGINS.match(line):
            items[-1].append(line)
        else:
            items.append([line])
    wrapped = []
    for first, *rest in items:
        margin = _margin(first)
        hanging = _margin(rest[0]) if rest else f"{margin}    " if margin else ""
        wrapped += indented(" ".join([first.strip(), *map(str.strip, rest)]), margin, hanging)
    yield "\n".join(wrapped)
