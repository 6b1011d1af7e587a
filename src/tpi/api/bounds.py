"""Connections to callers: how many there may be, and how long one may keep the server waiting. On the server's loop.

What is inside a request is bounded in ``guards``; here it is what comes before it (connections that say nothing, heads
that never end) and after it (callers who do not read what they get).
"""

import asyncio
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_LOOK_S = 0.5


@dataclass(frozen=True)
class Bounds:
    """``n_connections`` in all and ``n_per_address``: beyond, those go that wait for nothing, and if none does, who
    comes is turned away. A request's head must be there ``head_s`` after its first byte, and after the connection; one
    that is kept for the next request may be quiet for ``idle_s``. Who takes nothing for ``stalled_s`` is cut off."""

    n_connections: int = 512
    n_per_address: int = 384
    head_s: float = 10.0
    idle_s: float = 30.0
    stalled_s: float = 60.0
    handshake_s: float = 10.0
    """Of TLS."""


class Connections:
    """All that are open, those that are still at their handshake included."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}
        """Those without a request under way, who waits for the longest time first."""
        self._n_at: Counter[str] = Counter()

    def try_open(self, caller: socket.socket, address: str) -> "Connection | None":
        """One more from ``address``; None if there are too many. The socket is the connection's until its handshake
        begins."""
        if self._n_at[address] >= self.bounds.n_per_address and not self._make_room(address):
            return None
        if len(self._open) >= self.bounds.n_connections and not self._make_room(None):
            return None
        connection = Connection(self, caller, address)
        self._open.add(connection)
        self._waiting[connection] = None
        self._n_at[address] += 1
        return connection

    def leave(self, connection: "Connection") -> None:
        """See ``Connection.left``."""
        if connection in self._open:
            self._open.remove(connection)
            self._waiting.pop(connection, None)
            self._n_at[connection.address] -= 1
            if not self._n_at[connection.address]:
                del self._n_at[connection.address]

    def wait(self, connection: "Connection", waits: bool) -> None:
        """Whether it has no request under way, from now on."""
        self._waiting.pop(connection, None)
        if waits and connection in self._open:
            self._waiting[connection] = None

    async def watch(self) -> None:
        """Ends those that take too long, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            for connection in list(self._open):
                connection.check(now_s, self.bounds)

    def _make_room(self, address: str | None) -> bool:
        """Ends the one that has waited for the longest time without a request."""
        oldest = next((one for one in self._waiting if address in (None, one.address)), None)
        if oldest is None:
            return False
        oldest.abort()
        self.leave(oldest)
        return True


class Connection:
    """One of them. ``waits_since_s``: since when it has had no request under way; None while it has."""

    def __init__(self, all_of_them: Connections, caller: socket.socket, address: str) -> None:
        self._all, self._caller, self.address = all_of_them, caller, address
        self._has_begun = False
        self.handshake: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        """None: it is at its handshake, which has a limit of its own."""
        self.waits_since_s: float | None = time.monotonic()
        self.stalled_since_s: float | None = None
        self.is_kept = False
        """It had a request, and nothing of the next has come."""

    def begin(self) -> socket.socket:
        """The handshake begins: whoever does it closes the socket from now on."""
        self._has_begun = True
        return self._caller

    def check(self, now_s: float, bounds: Bounds) -> None:
        if self.transport is None:
            return
        limit_s = bounds.idle_s if self.is_kept else bounds.head_s
        if self.stalled_since_s is not None and now_s - self.stalled_since_s > bounds.stalled_s:
            self.abort()
        elif self.waits_since_s is not None and now_s - self.waits_since_s > limit_s:
            self.waits_since_s = now_s  # should it not close at once
            if not self.is_kept:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

    def waits(self, *, is_kept: bool = False) -> None:
        """Nothing is under way; ``is_kept``, and nothing of the next request has come."""
        self.waits_since_s, self.is_kept = time.monotonic(), is_kept
        self._all.wait(self, True)

    def works(self) -> None:
        """A request is under way."""
        self.waits_since_s, self.is_kept = None, False
        self._all.wait(self, False)

    def abort(self) -> None:
        """Ends it at once."""
        if self.transport is not None:
            self.transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()
            if not self._has_begun:
                self._caller.close()

    def left(self) -> None:
        """It is closed; idempotent."""
        self._all.leave(self)


class BoundedProtocol(H11Protocol):
    """Uvicorn's, which tells its connection what it does."""

    def __init__(self, connection: Connection, **parts: Any) -> None:
        super().__init__(**parts)
        self._connection = connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._connection.transport = transport
        self._connection.waits()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look(begins=True)

    def on_response_complete(self) -> None:
        self._connection.waits(is_kept=True)
        super().on_response_complete()
        self._look(begins=False)

    def pause_writing(self) -> None:
        self._connection.stalled_since_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._connection.stalled_since_s = None
        super().resume_writing()

    def _look(self, *, begins: bool) -> None:
        connection = self._connection
        if self.cycle is not None and not self.cycle.response_complete:
            connection.works()
        elif begins and connection.is_kept:
            connection.waits()


_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
"""What is said to those who are turned away before they ask."""
