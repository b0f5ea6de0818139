"""Does work beside the training, in a thread."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs one piece of work after the other in a thread; an error in it is raised by the next call.

    Args:
        waiting: how many pieces of work may wait.

    Example:
        >>> background, numbers = Background(), []
        >>> background.submit(numbers.append, 1)
        >>> background.wait()
        >>> numbers
        [1]
    """

    def __init__(self, *, waiting: int = 2) -> None:
        self.waiting = waiting
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="merge")
        self._pending: deque[Future[Any]] = deque()
        self._closed = False

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """Do this work after the rest; blocks while too much waits. Raises what earlier work raised.

        After :meth:`close` the work is done at once, in the calling thread.
        """
        if self._closed:
            work(*args)
            return
        while self._pending and (self._pending[0].done() or len(self._pending) >= self.waiting):
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(work, *args))

    def wait(self) -> None:
        """Wait until all work is done. Raises what it raised."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread once all work is done; hides errors in it, because another error is on its way."""
        self._executor.shutdown(wait=True)
        self._pending.clear()
        self._closed = True
