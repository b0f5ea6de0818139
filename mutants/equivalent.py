"""Faults that no test can see, since the library does the same with them, each with the reason."""

_START = "the rule counts its updates alone: `start` is there because every rule is called with it"
EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    (
        "lightning_objectives/_files/intact.py",
        "",
        "_CHUNK = 1 << 20",
        "_CHUNK = 1 << 19",
    ): "the checksum of a file is that of its pieces, whatever their size",
    (
        "lightning_objectives/_files/source.py",
        "Source.__init__",
        "self.keys: dict[str, str] = {}",
        "pass",
    ): "every way of opening a file sets it, and the line is there for its type and its description",
    (
        "lightning_objectives/averaging/swa.py",
        "SWA.update",
        "def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int=0) -> None:",
        "def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int=1) -> None:",
    ): _START,
    (
        "lightning_objectives/metrics/_numpy_cells.py",
        "numpy_cells",
        "if _max(bits.ravel().take(positions)) > INFINITY:",
        "if _max(bits.ravel().take(positions)) >= INFINITY:",
    ): "a softmax has no infinity, and a row of probabilities with one has no sum of 1, for which it is left to the "
    "general way two lines below",
}
"""By file, function, and the statement before and after."""
