"""A thread that runs the scheduler's steps, for those who only wait for their answers."""

import threading
from collections.abc import Callable
from typing import Self

from tpi.engine.scheduler import Scheduler
from tpi.errors import LinkError, TpiError

_LOOK_S = 0.5
"""How long at most until an end, or a loss, is noticed while there is nothing to do."""


class Driver:
    """A context manager. While it is open nobody else may call ``step``; ``close`` ends all answers and is
    idempotent."""

    def __init__(
        self, scheduler: Scheduler, check_alive: Callable[[], None], on_failure: Callable[[Exception], None]
    ) -> None:
        """``check_alive`` is called now and then while there is nothing to do, and raises what no answer can be given
        after. Of that, and of what else ends a step, ``on_failure`` is told by the thread, which ends then. What is no
        ``TpiError`` is a defect: callers are told that there is one, and do not wait for ever."""
        self._scheduler, self._check_alive, self._on_failure = scheduler, check_alive, on_failure
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
        try:
            while not self._is_closed:
                if self._scheduler.wait(_LOOK_S):
                    self._scheduler.gather()
                    self._scheduler.step()
                else:
                    self._check_alive()
        except BaseException as error:  # a panic in Rust is no Exception, and nobody else would learn of it
            self._fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            return
        self._scheduler.fail(LinkError("the server has ended"), is_final=True)

    def _fail(self, error: Exception) -> None:
        told = error if isinstance(error, TpiError) else TpiError(f"a defect of tpi ended the session: {error!r}")
        self._scheduler.fail(told, is_final=True)
        self._on_failure(error)
