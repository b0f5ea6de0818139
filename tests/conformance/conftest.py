"""Until the whole matrix has been run once and is quick enough, a run collects the cells that are known to hold."""

from pathlib import Path

COLLECTED = {"test_matrix.py"}
collect_ignore = sorted(p.name for p in Path(__file__).parent.glob("test_*.py") if p.name not in COLLECTED)


def pytest_collection_modifyitems(items):
    """One family."""
    mine = Path(__file__).parent
    items[:] = [
        item
        for item in items
        if mine not in item.path.parents or getattr(item, "callspec", None).params["condition"].family == "precision"
    ]
