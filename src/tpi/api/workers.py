"""Work that would hold up the server's loop (templates, tokens, grammars, large bodies), in threads of its own, and how
much of it may be there. Calls come from the loop; the work runs in the threads.

Whoever hangs up stops waiting at once; his place, and the bytes of his request, come back only when the thread has
ended, which is told between two steps that nobody wants the rest.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tpi.errors import BusyError, Cancelled

Result = TypeVar("Result")

_N_THREADS = 4
MAX_WORK = 64
"""Requests whose work runs or waits at once."""

_holders: contextvars.ContextVar["Holders | None"] = contextvars.ContextVar("holders", default=None)


class Holders:
    """Of what one request takes in memory: the request itself, at first, and every thread that works for it."""

    def __init__(self, on_free: Callable[[], None]) -> None:
        """``on_free`` is called once, by whoever is the last to leave."""
        self._on_free, self._n, self._lock = on_free, 1, threading.Lock()
        _holders.set(self)

    def enter(self) -> None:
        with self._lock:
            self._n += 1

    def leave(self) -> None:
        with self._lock:
            self._n -= 1
            is_free = self._n == 0
        if is_free:
            self._on_free()


class Going:
    """Whether work is wanted still. Any thread."""

    def __init__(self) -> None:
        self.is_wanted = True

    def check(self) -> None:
        """Between two steps.

        Raises:
            Cancelled: nobody wants the rest.
        """
        if not self.is_wanted:
            raise Cancelled("the caller has hung up")


class Workers:
    """A few threads, and a bounded number of requests before them."""

    def __init__(self, n_threads: int = _N_THREADS, max_work: int = MAX_WORK) -> None:
        self._pool, self._max_work = ThreadPoolExecutor(n_threads, "tpi-work"), max_work
        self._lock = threading.Lock()
        self._n_work = 0

    def close(self) -> None:
        """Waits for what runs; idempotent."""
        self._pool.shutdown(cancel_futures=True)

    async def run(self, work: Callable[[Going], Result], undo: Callable[[Result], None] | None = None) -> Result:
        """What ``work`` gives; if it gives something when the caller has gone, that is handed to ``undo``.

        Raises:
            BusyError: too many wait already.
            Exception: whatever ``work`` raises.
        """
        holders, going = _holders.get(), Going()
        with self._lock:
            if self._n_work >= self._max_work:
                raise BusyError(f"{self._max_work} requests are being read already: try again later")
            self._n_work += 1
        if holders is not None:
            holders.enter()

        def end(_: Future[Result]) -> None:
            with self._lock:
                self._n_work -= 1
            if holders is not None:
                holders.leave()

        def step() -> Result:
            going.check()
            return work(going)

        future = self._pool.submit(step)
        future.add_done_callback(end)
        result = asyncio.wrap_future(future)
        result.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more
        try:
            return await asyncio.shield(result)  # its place comes back when its turn has come
        except asyncio.CancelledError:
            going.is_wanted = False
            if undo is not None:
                future.add_done_callback(lambda done: _undo(done, undo))
            raise


def _undo(done: "Future[Result]", undo: Callable[[Result], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
