"""How the thread of steps tells the server's loop that there is news."""

import asyncio
import contextlib


def wake(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    """From any thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
        loop.call_soon_threadsafe(news.set)
