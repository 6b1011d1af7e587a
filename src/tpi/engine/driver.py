"""A thread that runs the scheduler's steps, for those who only wait for their answers."""

import threading
from collections.abc import Callable
from typing import Self

from tpi.engine.scheduler import Scheduler
from tpi.errors import LinkError, TpiError

_LOOK_S = 0.5
"""How long at most until an end is noticed while there is nothing to do."""


class Driver:
    """A context manager. While it is open nobody else may call ``step``; ``close`` ends all answers and is
    idempotent."""

    def __init__(self, scheduler: Scheduler, on_failure: Callable[[Exception], None]) -> None:
        """``on_failure`` is told, by the thread, of what no answer can be given after; then it ends. What is no
        ``TpiError`` is a defect: callers are told that there is one, and do not wait for ever."""
        self._scheduler, self._on_failure = scheduler, on_failure
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="tpi-steps", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._is_closed = True
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_closed:
            if not self._scheduler.wait(_LOOK_S):
                continue
            try:
                self._scheduler.step()
            except Exception as error:
                told = (
                    error if isinstance(error, TpiError) else TpiError(f"a defect of tpi ended the session: {error!r}")
                )
                self._scheduler.fail(told, is_final=True)
                self._on_failure(error)
                return
        self._scheduler.fail(LinkError("the server has ended"), is_final=True)
