"""What our docstrings say in Sphinx's words, said in Markdown, before griffe parses them."""

import re
from textwrap import dedent
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Turns ``:math:``, ``.. math::``, ``:func:`` and double back-quotes into Markdown."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute once it is loaded."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    r"""A docstring with Markdown in it.

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
    text = re.sub(r":math:`([^`]+)`", lambda m: f"${' '.join(m[1].split())}$", docstring)
    text = re.sub(r"^( *)\.\. math::\s*\n((?:\1 +.*\n?|\s*\n)+)", _display, text, flags=re.MULTILINE)
    text = re.sub(r":(?:func|class|data|meth|mod):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    # A method's card: each heading on a line of its own begins a paragraph. Griffe knows examples in the plural.
    text = re.sub(r"\n(?=(?:Cost|Interactions|When to use|Paper|Differs from the paper):)", "\n\n", text)
    text = re.sub(
        r"^(Cost|Interactions|When to use|Paper|Differs from the paper):", r"**\1.**", text, flags=re.MULTILINE
    )
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _display(match: re.Match[str]) -> str:
    body = "\n".join(match[1] + line for line in dedent(match[2]).strip().splitlines())
    return f"{match[1]}$$\n{body}\n{match[1]}$$\n\n"
