"""What is done with sequences between two steps, by the thread that runs them, for others who wait for it."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from tpi.engine.sequences import Sequences
from tpi.errors import BusyError, LinkError, ProtocolError, TpiError

Result = TypeVar("Result")

_MOST = 16


class Errands:
    """Those that wait. Any thread may add some."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[[Sequences], Any]]] = deque()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """There are some."""
        return bool(self._waiting)

    def add(self, work: Callable[[Sequences], Result]) -> "Future[Result]":
        """Raises:
        BusyError: too many wait already.
        """
        future: Future[Result] = Future()
        with self._lock:
            if len(self._waiting) >= _MOST:
                raise BusyError(f"{_MOST} requests for what is kept wait already: try again later")
            self._waiting.append((future, work))
        return future

    def run(self, sequences: Sequences) -> None:
        """All that wait now. What goes wrong is told those who wait.

        Raises:
            LinkError, ProtocolError: no further pass can run; those that are left wait on, for ``fail``.
        """
        for _ in range(len(self._waiting)):
            future, work = self._waiting.popleft()  # no other thread takes any
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(sequences))
            except (LinkError, ProtocolError) as error:
                future.set_exception(error)
                raise
            except Exception as error:
                future.set_exception(error)

    def fail(self, error: TpiError) -> None:
        """None of them will be done."""
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
        for future, _ in taken:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
