"""Lists the snapshots that a merge is made of."""

from typing import Any

from lightning_objectives._weights.optimizer_steps import Rates


class Entries:
    """Lists snapshots, oldest first, for whatever keeps them.

    >>> snapshots = Entries()
    >>> snapshots.entries += [{"step": 2, "rates": {}}, {"step": 4, "rates": {"0.0": [0.1, 0.1]}}]
    >>> snapshots.steps, snapshots.rates
    ([2, 4], [{'0.0': [0.1, 0.1]}])
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        """The ``step`` of each snapshot, the learning rates since the one before, and what else its keeper notes."""

    @property
    def steps(self) -> list[int]:
        """The steps of the snapshots."""
        return [entry["step"] for entry in self.entries]

    @property
    def rates(self) -> list[Rates]:
        """The learning rates between them."""
        return [entry["rates"] for entry in self.entries[1:]]
