r"""Writes the formulas of docstrings for a terminal.

The libraries for this drop the braces that say how far a fraction, a root or an exponent goes: pylatexenc makes
``t - s/1 - s`` of ``\frac{t - s}{1 - s}``. Here parentheses take their place, and what is not known is an error.
"""

import re
from typing import NoReturn

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}^_&]|\s+|.", re.DOTALL)
_WORDS = "log exp cos sin cosh max min sup inf arg".split()
_SYMBOLS = {
    **dict(zip("alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa".split(), "αβγδεεζηθικ")),
    **dict(zip("lambda mu nu xi pi rho sigma tau phi varphi chi psi omega".split(), "λμνξπρστφφχψω")),
    **dict(zip("Gamma Delta Theta Lambda Sigma Phi Psi Omega Pi".split(), "ΓΔΘΛΣΦΨΩΠ")),
    **dict(zip("sum prod int partial nabla ell infty in notin cup cap setminus".split(), "∑∏∫∂∇ℓ∞∈∉∪∩∖")),
    **dict(zip("ge le geq leq ne neq approx sim propto pm times cdot odot".split(), "≥≤≥≤≠≠≈~∝±×·⊙")),
    **dict(zip("leftarrow rightarrow to mapsto perp angle top mid".split(), "←→→↦⊥∠⊤|")),
    **dict(zip("langle rangle lfloor rfloor lceil rceil lVert rVert lvert rvert".split(), "⟨⟩⌊⌋⌈⌉‖‖||")),
    **{word: word for word in _WORDS},
    **dict.fromkeys("left right Big big textstyle displaystyle".split(), ""),
    **dict.fromkeys("quad qquad".split(), "  "),
    **{"dots": "…", "ldots": "…", "cdots": "…", "|": "‖", "_": "_", "{": "{", "}": "}", "%": "%", "!": "", "\\": "; "},
    **dict.fromkeys((",", ";", ":", " "), " "),
}
_FRACTIONS = ("\\frac", "\\tfrac", "\\dfrac")
_SEPARATORS = "=<>≤≥≈~∝←→,;+-([{|‖"
"""What may stand before a fraction that needs no parentheses; an empty text does too."""
_FOLLOWING = ("", *"+-=<>,;.)]}|&", *(f"\\{name}" for name in ("le", "ge", "ne", "quad", "qquad", "right", "\\", "|")))
"""What may follow it."""
_FONTS = ("operatorname", "operatorname*", "mathrm", "mathbf", "mathcal", "mathbb", "text", "texttt")
_ACCENTS = {"bar": "\u0304", "overline": "\u0304", "hat": "\u0302", "tilde": "\u0303"}
_RAISED = dict(zip("0123456789+-⊤", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀ"))


def plain_formula(latex: str) -> str:
    r"""A formula of LaTeX as text.

    Raises:
        ValueError: it holds a command that is not known here.

    >>> plain_formula(r"\frac{t - s}{1 - s} \le e^{-10 t} + \sqrt{a r} + \lambda_{j(i)}^2")
    '(t - s)/(1 - s) ≤ e^(-10 t) + √(a r) + λ_(j(i))²'
    >>> plain_formula(r"\log \frac{a}{b}")
    'log (a/b)'
    """
    return re.sub(r" +", " ", _Reader(latex).until("")).strip()


class _Reader:
    """Reads the tokens of a formula once, from left to right."""

    def __init__(self, latex: str) -> None:
        self.latex = latex
        self.tokens = _TOKEN.findall(latex)[::-1]

    def until(self, end: str) -> str:
        """The text up to a token, which is taken too; up to the end if it is empty."""
        text = ""
        while self.tokens:
            token = self.tokens.pop()
            if token == end:
                return text
            if token in "^_":
                text = text.rstrip() + self._script(token)
            elif token in _FRACTIONS:
                alone = text.rstrip()[-1:] in _SEPARATORS
                fraction = f"{_grouped(self._argument())}/{_grouped(self._argument())}"
                following = next((token for token in reversed(self.tokens) if not token.isspace()), "")
                text += fraction if alone and following in _FOLLOWING else f"({fraction})"
            else:
                text += self._one(token)
        return text if not end else self._fail(f"no {end}")

    def _one(self, token: str) -> str:
        """The text of what a token begins."""
        name = token[1:] if token[0] == "\\" else ""
        if token == "{":
            return self.until("}")
        if token == "&" or token.isspace():
            return " "
        if not name:
            return token
        if name == "sqrt":
            return f"√{_grouped(self._argument())}"
        if name in _FONTS:
            return self._argument()
        if name in _ACCENTS:
            inner = self._argument()
            return inner + _ACCENTS[name] if len(inner) == 1 else f"{name}({inner})"
        if name in ("begin", "end"):
            self._argument()
            return ""
        return _SYMBOLS[name] if name in _SYMBOLS else self._fail(token)

    def _argument(self) -> str:
        while self.tokens and self.tokens[-1].isspace():
            self.tokens.pop()
        return re.sub(r" +", " ", self._one(self.tokens.pop())).strip() if self.tokens else self._fail("an end")

    def _script(self, token: str) -> str:
        inner = self._argument()
        if token == "^" and all(letter in _RAISED for letter in inner):
            return "".join(_RAISED[letter] for letter in inner)
        return token + _grouped(inner)

    def _fail(self, what: str) -> NoReturn:
        raise ValueError(f"{what} in the formula {self.latex!r} has no text for a terminal: add it to {__name__}.")


def _grouped(text: str) -> str:
    """A text in parentheses, unless it holds together without them."""
    return text if re.fullmatch(r"[^\W_]+[\u0300-\u036f]?|[\d.]+|\S|\d*[^\W\d_]_\w", text) else f"({text})"
