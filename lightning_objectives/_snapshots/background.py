"""Work beside the training."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """A thread that does one piece of work after the other; few wait, and what fails is raised here.

    >>> background, done = Background(), []
    >>> background.submit(done.append, 1)
    >>> background.wait()
    >>> done
    [1]
    """

    def __init__(self, *, waiting: int = 2) -> None:
        self.waiting = waiting
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="merge")
        self._pending: deque[Future[Any]] = deque()
        self._closed = False

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """Do this after the rest; blocks while too much waits. Raises what earlier work raised.

        Once closed, it is done here and now.
        """
        if self._closed:
            work(*args)
            return
        while self._pending and (self._pending[0].done() or len(self._pending) >= self.waiting):
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(work, *args))

    def wait(self) -> None:
        """Until all is done. Raises what it raised."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread once all is done; what fails now fails in silence, since another error is on its way."""
        self._executor.shutdown(wait=True)
        self._pending.clear()
        self._closed = True
