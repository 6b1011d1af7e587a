"""How the thread of steps tells the server's loop that there is news, without waiting for the loop: a thread between
them takes all the news that there is, and passes it on at once. It gets its turn when the pass is being computed.

To write to the loop oneself would hand the interpreter to it, and the next pass would wait until all has been sent.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from typing import TypeAlias

_News: TypeAlias = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class Waker:
    """Owns its thread; ``close`` ends it, after what was told before."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[_News | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tpi-news", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        self._news.put(None)
        self._thread.join()

    def wake(self, loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
        """Sets ``news``, on its loop. From any thread, at any time."""
        self._news.put((loop, news))

    def _run(self) -> None:
        while (first := self._news.get()) is not None:
            found: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {first[0]: [first[1]]}
            is_over = False
            while not (is_over or self._news.empty()):
                if (other := self._news.get()) is None:
                    is_over = True
                else:
                    found.setdefault(other[0], []).append(other[1])
            for loop, events in found.items():
                with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                    loop.call_soon_threadsafe(_set_all, events)
            if is_over:
                return


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()
