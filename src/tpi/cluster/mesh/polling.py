"""``poll`` as POSIX systems have it, and as others imitate it. No state of its own."""

import select
from typing import Protocol

READABLE, WRITABLE = 1, 4
GONE = 8 | 16 | 32
"""The connection has ended or is none: POSIX's POLLERR, POLLHUP, POLLNVAL."""


class Poll(Protocol):
    """What is used of ``select.poll``."""

    def register(self, descriptor: int, events: int) -> None: ...

    def modify(self, descriptor: int, events: int) -> None: ...

    def poll(self, timeout_ms: float | None) -> list[tuple[int, int]]: ...


class SelectPoll:
    """By ``select``, for systems without ``poll``."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}

    def register(self, descriptor: int, events: int) -> None:
        self._events[descriptor] = events

    def modify(self, descriptor: int, events: int) -> None:
        self._events[descriptor] = events

    def poll(self, timeout_ms: float | None) -> list[tuple[int, int]]:
        """See ``select.poll.poll``; that a connection has ended is seen when it is read."""
        reads = [descriptor for descriptor, events in self._events.items() if events & READABLE]
        writes = [descriptor for descriptor, events in self._events.items() if events & WRITABLE]
        timeout_s = None if timeout_ms is None else timeout_ms / 1e3
        readable, writable, broken = select.select(reads, writes, reads, timeout_s)
        found = dict.fromkeys((*readable, *broken), READABLE)
        for descriptor in writable:
            found[descriptor] = found.get(descriptor, 0) | WRITABLE
        return list(found.items())


def make_poll() -> Poll:
    """The best that this system has."""
    return select.poll() if hasattr(select, "poll") else SelectPoll()
