"""No mark and no LaTeX reaches a terminal, and a formula means what it meant."""

import inspect
import sys

import pytest

from lightning_objectives import callbacks, cli
from lightning_objectives.cli.formulas import plain_formula
from lightning_objectives.cli.text import readable
from lightning_objectives.discovery import methods


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{t - s}{1 - s}", "(t - s)/(1 - s)"),
        (r"\frac12 x", "(1/2) x"),
        (r"\log \frac{a}{b}", "log (a/b)"),
        (r"x - \frac{a}{b} = 0", "x - a/b = 0"),
        (r"\frac{1}{N} \sum_{i=1}^{N} \ell_i", "(1/N) ∑_(i=1)^N ℓ_i"),
        (r"\sum_i \tfrac{a_i}{b}", "∑_i (a_i/b)"),
        (r"1 - e^{-10 t}", "1 - e^(-10 t)"),
        (r"e^{-(k / s)^2}", "e^(-(k / s)²)"),
        (r"a^{-1} b^{12} W^\top", "a⁻¹ b¹² Wᵀ"),
        (r"x_{j(i)} + x_{ij} + x_i", "x_(j(i)) + x_ij + x_i"),
        (r"\sqrt C + \sqrt{a r}", "√C + √(a r)"),
        (r"\bar x, \hat{\theta}, \overline{x y}", "x̄, θ̂, overline(x y)"),
        (r"\lVert w \rVert_2 \le \left\lfloor v \right\rfloor", "‖ w ‖_2 ≤ ⌊ v ⌋"),
        (r"\operatorname{Beta}(\alpha, \beta), \quad \lambda \sim \mathrm{U}", "Beta(α, β), λ ~ U"),
        (r"\begin{cases} a & b \\ c & d \end{cases}", "a b ; c d"),
        (r"\arg\max_k \exp(z)", "argmax_k exp(z)"),
    ],
)
def test_formulas_by_hand(latex, text):
    assert plain_formula(latex) == text


@pytest.mark.parametrize("latex", [r"\unknown x", r"\frac{a", r"\sqrt", r"a^{b"])
def test_a_formula_that_is_not_understood_is_an_error(latex):
    with pytest.raises(ValueError, match=r"has no text for a terminal: add it to lightning_objectives\.cli\.formulas"):
        plain_formula(latex)


def docstrings():
    things = [getattr(callbacks, name) for name in callbacks.__all__]
    for _, cls in methods():
        file = vars(sys.modules[cls.__module__]).values()
        things += [value for value in file if getattr(value, "__module__", None) == cls.__module__]
    return [inspect.getdoc(thing) for thing in things if inspect.getdoc(thing)]


def test_no_mark_is_left_in_any_docstring():
    texts = [readable(text) for text in docstrings()]
    assert len(texts) > 300
    for text in texts:
        prose = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith((">>>", "...")))
        assert "\\" not in prose, prose
        assert "`" not in prose, prose
        assert ":math" not in prose
        # Code, what it prints, and addresses are as wide as they are.
        wide = [line for line in prose.split("\n") if len(line) > 80 and "(" not in line and "http" not in line]
        assert not wide


def test_text_is_reflowed_and_code_is_not():
    code = ">>> " + "x" * 90
    text = f"A {'word ' * 30}\nends.\n\nArgs:\n    a: {'one ' * 30}\n    b: two\n        three.\n\nExample:\n    {code}"
    lines = readable(text).split("\n")
    assert max(len(line) for line in lines if "x" * 90 not in line) <= 80
    assert f"    {code}" in lines
    argument = lines.index("Args:")
    assert lines[argument + 1].startswith("    a: one")
    assert lines[argument + 2].startswith("        one")
    assert "    b: two three." in lines


def test_cards_and_the_list_fit_a_terminal(capsys):
    cli.main(["methods"])
    listed = capsys.readouterr().out.split("\n")
    assert [line for line in listed if len(line) > 80 and "http" not in line] == []
    cli.main(["methods", "BEMA"])
    card = capsys.readouterr().out
    assert "    θ̄ ← (1 - β_t) θ̄ + β_t θ_t" in card
    assert [line for line in card.split("\n") if len(line) > 80 and ">>>" not in line] == []
