"""The gallery: every method in a table, by room, with a filter by family; made from the cards."""

from collections.abc import Iterable
from itertools import groupby

from docs.cards import Card, badge, cards, linked, room_title

PAGE = "methods/index.md"
HEAD = """\
---
hide: [navigation, toc]
---

# Methods

Every method of the package, by the place in the training where it acts. Choose a family or type a word to filter.
*Evidence* is what [our benchmarks](../evidence/index.md) found on small networks: gain, mixed, no gain or hurts.
"""


def page() -> str:
    """The page with all rooms."""
    parts = [HEAD, _filter()]
    for room, group in groupby(cards(), key=lambda card: card.room):
        parts += [f"## [{room_title(room)}]({room}/index.md)", _table(group, PAGE)]
    return "\n\n".join(parts) + "\n"


def of_room(room: str, here: str) -> list[str]:
    """The table of one room; none for a part that holds no methods."""
    found = [card for card in cards() if card.room == room]
    return [_table(found, here)] if found else []


def _filter() -> str:
    families = sorted({card.family for card in cards()})
    options = "".join(f'<option value="{family}">{family}</option>' for family in families)
    return (
        '<div class="lo-filter"><label>Family <select id="lo-family"><option value="">all</option>'
        f'{options}</select></label> <label>Word <input id="lo-word" type="search" placeholder="noise ..."></label>'
        ' <output id="lo-count"></output></div>'
    )


def _table(group: Iterable[Card], here: str) -> str:
    lines = ["| Method | Paper | Family | When to use it | Cost | Evidence |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [_row(card, here) for card in group]
    return '<div class="lo-cards lo-gallery" markdown>\n\n' + "\n".join(lines) + "\n\n</div>"


def _row(card: Card, here: str) -> str:
    up = "../" * here.count("/")
    paper = f"[{card.citation}]({card.url})" if card.url else card.citation
    cells = [
        f"[`{card.name}`]({up}{card.page})<br>{linked(card.summary, here)}",
        paper,
        badge(card.family, "family"),
        _sentence(card.first("When to use"), here),
        _sentence(card.first("Cost"), here),
        badge(card.verdict),
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _sentence(text: str, here: str) -> str:
    return linked(text[:1].upper() + text[1:], here)
