"""Shows how far the writing of a file is, up to the moment when it is on the disk."""

from types import TracebackType

from tqdm.auto import tqdm


class Progress:
    """A bar that is full only when the file is flushed to the disk and has its name.

    It counts each byte of the tensors once for each stage that the file goes through: merging, for a file of torch
    writing it once more, and flushing.

    Args:
        visible: whether there is a bar.
    """

    def __init__(self, *, visible: bool) -> None:
        self._bar = tqdm(disable=not visible, unit="B", unit_scale=True, unit_divisor=1024)
        self._size = 0
        self._ended = 0

    def begin(self, size: int, stages: int) -> None:
        """Set the length of the bar, in bytes of one stage and in stages."""
        self._size = size
        self._bar.total = size * stages
        self._bar.refresh()

    def stage(self, name: str) -> None:
        """Name what is being done, until the same number of bytes has gone through it."""
        self._bar.set_description(name)

    def add(self, size: int) -> None:
        """Count bytes of the current stage, at most as many as it has."""
        self._bar.update(min(size, self._size * (self._ended + 1) - self._bar.n))

    def end_stage(self) -> None:
        """Count what is left of the current stage."""
        self.add(self._size)
        self._ended += 1

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
