"""Formulas as MathML, made when the site is built: browsers draw it without a script or a network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    r"""Replace each formula that arithmatex has marked.

    >>> on_page_content('<p><span class="arithmatex">\\(x^2\\)</span></p>')[:60]
    '<p><math xmlns="http://www.w3.org/1998/Math/MathML" display='
    """
    return FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    formula = unescape(found[3]).strip()
    if found[2] == "(":
        return convert(formula, display="inline")
    return f'<div class="lo-formula">{convert(formula, display="block")}</div>'  # scrolls if the screen is narrow
