"""Relays: pairs of workers that cannot reach each other, joined by the master, which passes their bytes on.

Owns both connections of every pair, each encrypted for itself. One thread carries all pairs, from the first on.
"""

import socket
import ssl
import threading
from typing import Self

from tpi.cluster.mesh.polling import GONE, READABLE, WRITABLE, make_poll

MAX_BUFFERED_BYTES = 256 << 10
"""Of one direction of one pair."""
_READ_BYTES = 64 << 10
_THREAD = "tpi-relays"
_BUSY = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


class _End:
    """One connection, and what waits to be sent on it."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.descriptor = sock.fileno()
        self.waiting = bytearray()
        self.other: _End = self
        self.is_over = False

    def wanted(self) -> int:
        reads = READABLE if len(self.other.waiting) < MAX_BUFFERED_BYTES else 0
        return reads | (WRITABLE if self.waiting else 0)

    def read(self) -> None:
        """Takes what has come for the other end."""
        while len(self.other.waiting) < MAX_BUFFERED_BYTES:
            try:
                content = self.socket.recv(_READ_BYTES)
            except _BUSY:
                return
            if not content:
                raise ConnectionError
            self.other.waiting += content
            self.other.write()

    def write(self) -> None:
        """Sends what waits, as much as the system takes. What TLS has begun to send must be handed over unchanged."""
        while self.waiting:
            try:
                n = self.socket.send(memoryview(self.waiting)[:_READ_BYTES])
            except _BUSY:
                return
            del self.waiting[:n]


class Relays:
    """A context manager; ``close`` is idempotent."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._added: list[_End] = []
        self._ends: dict[int, _End] = {}
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self, one: ssl.SSLSocket, other: ssl.SSLSocket) -> None:
        """From now on what comes from one goes to the other. Takes both over."""
        ends = _End(one), _End(other)
        ends[0].other, ends[1].other = ends[1], ends[0]
        with self._mutex:
            self._added += ends
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
                self._thread.start()
        self._wake_sender.send(b"x")

    def close(self) -> None:
        """Ends all pairs."""
        if self._is_closing:
            return
        self._is_closing = True
        self._wake_sender.send(b"x")
        if self._thread is not None:
            self._thread.join()
        for end in (*self._ends.values(), *self._added):
            end.socket.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _run(self) -> None:
        while not self._is_closing:
            self._take_added()
            poll = make_poll()
            poll.register(self._wake_receiver.fileno(), READABLE)
            for end in self._ends.values():
                poll.register(end.descriptor, end.wanted())
            for descriptor, events in poll.poll(None):
                if descriptor == self._wake_receiver.fileno():
                    self._wake_receiver.recv(4096)
                else:
                    self._move(descriptor, events)

    def _take_added(self) -> None:
        with self._mutex:
            for end in self._added:
                self._ends[end.descriptor] = end
                self._move(end.descriptor, READABLE)  # what TLS has decrypted already, no poll tells of
            self._added.clear()

    def _move(self, descriptor: int, events: int) -> None:
        end = self._ends.get(descriptor)
        if end is None:
            return
        try:
            if events & GONE and not end.wanted() & READABLE:  # poll would tell of it for ever
                raise ConnectionError
            if events & (READABLE | GONE):
                end.read()
            if events & WRITABLE:
                end.write()
        except OSError:
            for half in (end, end.other):
                self._ends.pop(half.descriptor, None)
                half.socket.close()
