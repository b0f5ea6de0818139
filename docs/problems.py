"""The table "Which problem have you?": choices by hand, verdicts from the benchmarks, snippets from the kind."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from docs import snippets
from docs.cards import Card, cards, verdicts

BEGIN, END = "<!-- problems: written by python -m docs.problems -->", "<!-- end of problems -->"


class Problem(NamedTuple):
    """A user's problem, the method to try first, and others."""

    need: str
    first: str
    others: tuple[str, ...] = ()


PROBLEMS = (
    Problem("Noisy labels", "GeneralizedCrossEntropyLoss", ("EarlyLearningRegularization", "SmallLossSelection")),
    Problem("Imbalanced classes, long tail", "LogitAdjustedLoss", ("BalancedSoftmaxLoss", "LDAMLoss")),
    Problem("Overconfidence, poor calibration", "TemperatureScaling", ("LabelSmoothingLoss", "APS")),
    Problem("Overfitting", "Mixup", ("RDrop", "SAM")),
    Problem("A big teacher, a small student", "VanillaKD", ("DualHead", "DKD")),
    Problem("Few labels", "VAT", ("MixupOrCutMix", "L2SP")),
    Problem("Several tasks that compete", "PCGrad", ("UncertaintyWeighting", "NashMTL")),
    Problem("Shifted data at test time", "TENT", ("BatchNormAdaptation", "LAME")),
    Problem("Groups that do badly", "GroupDRO", ("JTT", "CVaR")),
    Problem("No learning rate decay planned", "WSM", ("EMA", "WSDSchedule")),
    Problem("Many checkpoints, one model wanted", "UniformSoup", ("GreedySoup", "TIES")),
    Problem("A long vocabulary, many classes", "LogPartitionPenalty", ("DecoupledSoftmaxLoss", "SoftTopKLoss")),
    Problem("Slow or noisy convergence", "EMA", ("BEMA", "LossBasedReweighting")),
    Problem("Fine-tuning a language model", "DynamicFineTuningLoss", ("AnchoredSFTLoss", "BEMA")),
)


def table(*, links: str = "") -> str:
    """The table in Markdown; ``links`` is what the addresses of the methods' pages begin with."""
    known = {card.name: card for card in cards()}
    lines = ["| Your problem | Try first | Our evidence | Add this | Also |", "| --- | --- | --- | --- | --- |"]
    for problem in PROBLEMS:
        card = known[problem.first]
        others = ", ".join(_named(known[name], links) for name in problem.others)
        cells = [f"**{problem.need}**", _named(card, links, alone=True), card.verdict, f"`{snippet(card)}`", others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def snippet(card: Card) -> str:
    """What is added to the list of callbacks, or called after the training."""
    if card.callback:
        return snippets.placed(card)
    return snippets.plain(card).splitlines()[-1]


def _named(card: Card, links: str, *, alone: bool = False) -> str:
    link = f"[`{card.name}`]({links}{card.page})" if links != "none" else f"`{card.name}`"
    measured = card.verdict if card.name in verdicts() else ""
    return link if alone or not measured else f"{link} ({measured})"


def in_readme(readme: str) -> str:
    """The text of the README with the table as it is now, without links, which PyPI could not follow."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}",
        lambda _: f"{BEGIN}\n\n{table(links='none')}\n\n{END}",
        readme,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    path = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "README.md"
    path.write_text(in_readme(path.read_text()))
