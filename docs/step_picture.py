"""Draws the training step with the places of the callbacks: docs/images/training_step.svg.

Run it as ``python -m docs.step_picture``. The colours follow the reader's light or dark mode; on the site they follow
the site's own switch, which docs/assets/site.css sets.
"""

import re
from pathlib import Path

PICTURE = Path(__file__).parent / "images" / "training_step.svg"
STAGES = (
    ("Before the first step", ("SurveyData",), ""),
    ("Batch", ("TransformBatch",), "step"),
    ("Network", ("ChangeLayers", "WrapHead"), "step"),
    ("Loss of each sample", ("ReplaceLoss", "ReweightSamples"), "step"),
    ("+ added terms", ("AddRegularizer", "Distill"), "step"),
    ("Sum of the terms", ("CombineTerms",), "step"),
    ("Gradients", ("PerturbWeights", "TransformGradients"), "step"),
    ("Weights", ("AverageWeights",), "step"),
    ("Validation", ("LogMetrics", "Calibrate"), ""),
    ("After the training", ("MergeCheckpoints",), ""),
    ("Test", ("AdaptAtTest",), ""),
)
"""What a training does in turn, the callbacks that act there, and whether it happens in each step."""
WIDTH, ROW, LEFT, RIGHT = 640, 46, 34, 258
STYLE = """
.lo-step { --lo-ink: #1f2328; --lo-soft: #d0d7de; --lo-chip: #3f51b5; --lo-back: #e8eaf6 }
@media (prefers-color-scheme: dark) {
  .lo-step { --lo-ink: #e6edf3; --lo-soft: #57606a; --lo-chip: #b3c0ff; --lo-back: #262b45 }
}
"""


def picture() -> str:
    """The picture as SVG."""
    rows = [_row(number, *stage) for number, stage in enumerate(STAGES)]
    steps = [number for number, (_, _, where) in enumerate(STAGES) if where]
    top, bottom = 8 + steps[0] * ROW, 8 + (steps[-1] + 1) * ROW - 10
    bracket = (
        f'<path d="M14 {bottom - 6} H8 V{top + 6} H14" fill="none" stroke="var(--lo-ink)" stroke-width="1.5"/>'
        f'<text transform="translate(24 {(top + bottom) / 2:g}) rotate(-90)" text-anchor="middle" font-size="12" '
        'fill="var(--lo-ink)">each step</text>'
    )
    height = 8 + len(STAGES) * ROW
    return (
        f'<svg class="lo-step" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="15">'
        "<title>What a training does in turn, on the left; the callback that acts there, on the right.</title>"
        f"<style>{STYLE}</style>{bracket}{''.join(rows)}</svg>\n"
    )


def _row(number: int, stage: str, callbacks: tuple[str, ...], where: str) -> str:
    top = 8 + number * ROW
    middle, height = top + (ROW - 10) / 2, ROW - 10
    dash = "" if where else ' stroke-dasharray="4 3"'
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="186" height="{height}" rx="6" fill="none" stroke="var(--lo-ink)"{dash}/>',
        f'<text x="{LEFT + 93}" y="{middle + 5:g}" text-anchor="middle" fill="var(--lo-ink)">{stage}</text>',
        f'<path d="M{LEFT + 186} {middle:g} H{RIGHT}" stroke="var(--lo-soft)" stroke-width="1.5"/>',
    ]
    if number + 1 < len(STAGES):
        parts.append(f'<path d="M{LEFT + 93} {top + height} v10" stroke="var(--lo-ink)" stroke-width="1.5"/>')
    left = RIGHT
    for name in callbacks:
        width = 20 + 8.6 * len(name)
        parts.append(
            f'<rect x="{left:g}" y="{top + 4}" width="{width:g}" height="{height - 8}" rx="14" fill="var(--lo-back)" '
            f'stroke="var(--lo-chip)"/><text x="{left + width / 2:g}" y="{middle + 5:g}" text-anchor="middle" '
            f'font-family="ui-monospace, monospace" font-size="14" fill="var(--lo-chip)">{name}</text>'
        )
        left += width + 8
    return "".join(parts)


def inline() -> str:
    """The picture as a part of a page, whose own style sheet colours it."""
    return re.sub(r"<style>.*?</style>", "", picture(), flags=re.DOTALL).strip()


if __name__ == "__main__":
    PICTURE.write_text(picture())
