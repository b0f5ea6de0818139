"""The upper part of a method's page: what it is for, how to use it, and what is known of it."""

import re
from textwrap import indent

from docs import snippets
from docs.cards import Card, badge, linked, room_title

NAMES = {
    "model": "your `LightningModule`",
    "train_loader": "your data loaders",
    "test_loader": "your data loader",
    "train_set": "your data set",
    "YourModule": "the class of your module",
    "network": "any `nn.Module`",
    "again": "a function that runs the network once more",
}
"""What the names in the snippets stand for."""
SHORT = 60
"""The letters of the longest cost that a badge holds."""
WORDS = {
    "class imbalance": "imbalanced data, long tail, rare classes",
    "label noise": "noisy labels, wrong labels, mislabelled data",
    "overconfidence": "calibration, ECE, uncertainty",
    "overfitting": "regularization, generalization gap",
    "multi-task": "several losses, multi-task learning, loss balancing",
    "fine-tuning": "pretrained networks, language models, LLM, SFT, LoRA",
    "distillation": "teacher and student, knowledge distillation, model compression",
    "group shift": "worst group, spurious correlation, fairness",
    "weight averages": "EMA, moving average, averaging weights",
    "merged checkpoints": "model soup, merging, checkpoint averaging",
    "batch transforms": "data augmentation, overfitting",
    "perturbed weights": "sharpness-aware minimization, overfitting, generalization",
    "adaptation at test time": "domain shift, test-time adaptation, corrupted data",
    "gradient transforms": "gradient clipping, loss spikes, stable training",
    "learning rate schedules": "learning rate decay, warm-up",
    "changed layers": "freezing layers, dropout, BatchNorm, regularization, overfitting",
    "prediction sets": "conformal prediction, uncertainty",
    "many labels": "large vocabulary, extreme classification",
}
"""Other words by which users search for a family."""


def above(card: Card) -> list[str]:
    """The page's title, its badges and its sections in front of the docstrings."""
    parts = [f"# {card.name}", linked(card.summary, card.page), _badges(card)]
    if paper := card.parts.get("Paper"):
        parts.append(f"**Paper.** {linked(paper, card.page)}")
    parts += ["## Use it", *_tabs(card)]
    for head, heading in (("When to use", "When to use it"), ("Cost", "Cost"), ("Interactions", "Interactions")):
        if text := card.parts.get(head):
            parts += [f"## {heading}", linked(text[:1].upper() + text[1:], card.page)]
    parts += ["## Does it help?", *_evidence(card)]
    if text := card.parts.get("Differs from the paper"):
        parts += ["## Differs from the paper", linked(text[:1].upper() + text[1:], card.page)]
    if words := WORDS.get(card.family):
        parts.append(f'<p class="lo-words">See also, in other words: {words}.</p>')
    return [*parts, "## Settings and formula"]


def _badges(card: Card) -> str:
    room = f'<a class="lo-badge" href="index.html">{room_title(card.room)}</a>'
    family = badge(card.family, "family") if card.family.lower() != room_title(card.room).lower() else ""
    problems = [badge(f"for {problem}", "problem") for problem in getattr(card.cls, "problems", ())]
    verdict = badge(f"evidence: {card.verdict}", card.verdict)
    cost = card.first("Cost").rstrip(".")
    short = f"cost: {cost}" if 0 < len(cost) <= SHORT and not {*"`$[<"} & {*cost} else "cost: see below"
    cost = f'<a class="lo-badge" href="#cost">{short}</a>' if cost else ""
    return " ".join(filter(None, [verdict, cost, room, family, *problems]))


def _tabs(card: Card) -> list[str]:
    """The snippets, a tab each, and what the names in them stand for."""
    found = snippets.tabs(card)
    tabs = [
        f'=== "{name}"\n\n' + indent(f"```{language}\n{code}\n```", "    ") for name, (language, code) in found.items()
    ]
    code = re.sub(r"#.*", "", "\n".join(code for _, code in found.values()))
    names = [f"`{name}`: {what}" for name, what in NAMES.items() if re.search(rf"\b{name}\b", code)]
    hints = [f"In the snippets, {'; '.join(names)}."] if names else []
    if getattr(card.cls, "example", {}):
        hints.append("The numbers in the call are examples: choose your own.")
    if card.callback and card.room not in ("metrics",):
        hints.append(f"[`{card.callback}`](../../package/callbacks.md) has more settings.")
    return [*tabs, " ".join(hints)] if hints else tabs


def _evidence(card: Card) -> list[str]:
    """The verdict, and the picture of the benchmark that gave it."""
    heading, picture = card.plot
    if not heading:
        known = f"Our benchmarks say: **{card.verdict}**. See [Evidence](../../evidence/index.md)."
        return [known if card.verdict != "not measured yet" else "We have not measured it yet."]
    text = f"Our benchmarks on small networks and real data say: **{card.verdict}**."
    link = f"[{heading}](../../evidence/index.md) has the numbers."
    return [f"{text} {link}", f"![{heading}](../../evidence/{picture})"]
