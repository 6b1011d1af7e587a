"""DataLink: frames over one TLS connection, both ways at once, without ever blocking.

Does not open connections, wait (``mesh``), or watch whether the peer lives: the control link does. Python's TLS sockets
may not be used by two threads at once: whoever drives the mesh drives its links.
"""

import contextlib
import ctypes
import socket
import ssl
from collections import deque
from collections.abc import Callable

from tpi.cluster.mesh.framelog import FrameLog
from tpi.cluster.mesh.frames import (
    HEADER_BYTES,
    KEY_BYTES,
    FrameBuffer,
    FrameHeader,
    unpack_header,
)
from tpi.cluster.mesh.polling import READABLE, WRITABLE
from tpi.errors import LinkError, ProtocolError
from tpi.trace import Kind

_SEND_BYTES = 64 << 10
"""Handed to TLS at once. What it has begun must be handed over again, unchanged, until it has taken all of it."""

_BUSY = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)


class Exchange:
    """What somebody waits for: so many frames that are still to come, and so many that are still to leave."""

    __slots__ = ("address", "counter")

    def __init__(self) -> None:
        self.counter = ctypes.c_int32(0)
        self.address = ctypes.addressof(self.counter)
        """Of the counter, for C; valid as long as this lives."""

    @property
    def n_left(self) -> int:
        return self.counter.value

    @n_left.setter
    def n_left(self, value: int) -> None:
        self.counter.value = value


class Incoming:
    """A frame that is to come from one peer, and where it goes. Used again and again."""

    __slots__ = ("buffer", "exchange", "key", "key_bytes")

    def __init__(self, buffer: FrameBuffer, key_bytes: int = KEY_BYTES) -> None:
        """Only the first ``key_bytes`` of the key count: fewer for frames whose pass is not known before."""
        self.buffer = buffer
        self.key_bytes = key_bytes
        self.key = b""
        self.exchange: Exchange | None = None


class DataLink:
    """One end of a data connection, for one epoch. Owns the socket, which may be a plain one in tests."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        """``peer`` names the other device in errors."""
        if sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.socket = sock
        self._has_hidden: Callable[[], int] = sock.pending if isinstance(sock, ssl.SSLSocket) else lambda: 0
        self.peer = peer
        self.descriptor = sock.fileno()
        self.armed = 0
        """For what events the mesh listens."""
        self._outgoing: deque[tuple[memoryview, Exchange]] = deque()
        self._n_left = 0
        """Of the first that is outgoing: bytes that have left."""
        self._expected: list[Incoming] = []
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._n_header = 0
        self._frame: Incoming | None = None
        self._rest = memoryview(b"")
        self._parked: FrameHeader | None = None
        self._read_wants, self._write_wants = READABLE, WRITABLE
        self._failure: LinkError | None = None
        self.log: FrameLog | None = None
        """Told when frames leave and come."""
        self.n_bytes_sent = 0
        """Headers included, TLS excluded."""
        self.n_bytes_received = 0

    def wanted(self) -> int:
        """The events that let this link go on."""
        reads = self._read_wants if self._frame or (self._expected and self._parked is None) else 0
        return reads | (self._write_wants if self._outgoing else 0)

    def send(self, buffer: FrameBuffer, exchange: Exchange) -> None:
        """Sends the sealed frame in ``buffer``, as much as the system takes; the rest waits, and counts in
        ``exchange`` until it has left. Meanwhile the buffer must not change.

        Raises:
            LinkError: the link is broken.
        """
        view = buffer.frame[: HEADER_BYTES + buffer.n_payload_bytes]
        exchange.n_left += 1
        self._outgoing.append((view, exchange))
        if len(self._outgoing) == 1:
            self.write()

    def expect(self, incoming: Incoming, key: bytes, exchange: Exchange) -> None:
        """Frames with this key go to ``incoming``; it counts in ``exchange`` until it is complete.

        Raises:
            LinkError, ProtocolError: as ``read``.
        """
        incoming.key, incoming.exchange = key[: incoming.key_bytes], exchange
        exchange.n_left += 1
        self._expected.append(incoming)
        if self._parked is not None or self._has_hidden():
            self.read()

    def read(self) -> None:
        """Takes what has come, as far as it is expected.

        Raises:
            LinkError: the link is broken.
            ProtocolError: the peer sent what cannot be.
        """
        while True:
            if self._frame is None:
                if not (self._expected and self._take_header()):
                    return
                if not self._find_place():
                    return
            if len(self._rest):
                n = self._receive(self._rest)
                if not n:
                    return
                self._rest = self._rest[n:]
                if len(self._rest):
                    continue
            assert self._frame is not None and self._frame.exchange is not None
            if self.log is not None:
                self.log.end(Kind.RECEIVE, self._frame.buffer.frame)
            self._frame.exchange.n_left -= 1
            self._frame, self._n_header = None, 0
            if not self._has_hidden():
                return

    def write(self) -> None:
        """Sends what waits, as much as the system takes.

        Raises:
            LinkError: the link is broken.
        """
        while self._outgoing:
            frame, exchange = self._outgoing[0]
            if self.log is not None and not self._n_left:
                self.log.begin(Kind.SEND)
            n = self._give(frame[self._n_left : self._n_left + _SEND_BYTES])
            if not n:
                return
            self._n_left += n
            if self._n_left == len(frame):
                if self.log is not None:
                    self.log.end(Kind.SEND, frame)
                self._outgoing.popleft()
                self._n_left = 0
                exchange.n_left -= 1

    def move(self, events: int, is_gone: bool) -> None:
        """Goes on as far as ``events`` allow; ``is_gone``: the system says that the connection has ended.

        Raises:
            LinkError, ProtocolError: as ``read``; the connection has ended and nothing of it is expected.
        """
        if is_gone or events & self._read_wants:
            self.read()
            if is_gone and not self.wanted() & self._read_wants:
                raise self.broken(None)
        if events & self._write_wants and self._outgoing:
            self.write()

    def is_waited_for(self, exchange: Exchange) -> bool:
        """Whether ``exchange`` waits for this peer."""
        incoming = (*self._expected, *([self._frame] if self._frame else ()))
        return any(frame.exchange is exchange for frame in incoming) or any(
            waiting is exchange for _, waiting in self._outgoing
        )

    def close(self) -> None:
        """Ends the connection and frees the socket; idempotent."""
        # Not SSLSocket.shutdown(): it would drop TLS and let the next call read or write in the clear.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
        self.socket.close()
        self._failure = self._failure or LinkError(f"the data link to {self.peer} was closed on this side")

    def _take_header(self) -> bool:
        """Whether the header of the next frame is complete."""
        while self._n_header < HEADER_BYTES:
            n = self._receive(self._header[self._n_header :] if self._n_header else self._header)
            if not n:
                return False
            self._n_header += n
        return True

    def _find_place(self) -> bool:
        """Whether the frame whose header has come is expected now; if so, its payload is to be received next."""
        for incoming in self._expected:
            if self._header[: incoming.key_bytes] == incoming.key:
                break
        else:
            self._park()
            return False
        header = unpack_header(self._header)
        self._expected.remove(incoming)
        buffer = incoming.buffer
        if header.n_payload_bytes > buffer.capacity_bytes:
            raise refuse_size(self.peer, header, buffer.capacity_bytes)
        buffer.frame[:HEADER_BYTES] = self._header
        self._parked = None
        if self.log is not None:
            self.log.begin(Kind.RECEIVE)
        self._frame = incoming
        self._rest = buffer.payload[: header.n_payload_bytes]
        return True

    def _park(self) -> None:
        """The peer is ahead: its frame waits until somebody expects it. A frame from the past never will be."""
        header = self._parked or unpack_header(self._header)
        check_step(self.peer, header, self._expected[0].key)
        self._parked = header

    def _receive(self, view: memoryview) -> int:
        """Bytes received, 0 if none are there."""
        try:
            n = self.socket.recv_into(view)
        except _BUSY as error:
            self._read_wants = WRITABLE if isinstance(error, ssl.SSLWantWriteError) else READABLE
            return 0
        except OSError as error:
            raise self.broken(error) from None
        if n == 0:
            raise self.broken(None)
        self.n_bytes_received += n
        self._read_wants = READABLE
        return n

    def _give(self, view: memoryview) -> int:
        """Bytes sent, 0 if none can be now."""
        try:
            n = self.socket.send(view)
        except _BUSY as error:
            self._write_wants = READABLE if isinstance(error, ssl.SSLWantReadError) else WRITABLE
            return 0
        except OSError as error:
            raise self.broken(error) from None
        self.n_bytes_sent += n
        self._write_wants = WRITABLE
        return n

    def broken(self, error: OSError | None) -> LinkError:
        """The one-line error for this link's end, which every later call raises too."""
        if self._failure is None:
            if error is None:
                text = f"{self.peer} closed the data link: its process ended or the network broke"
            else:
                text = f"the data link to {self.peer} broke ({_reason(error)})"
            self._failure = LinkError(text)
        return self._failure


def check_step(peer: str, header: FrameHeader, key: bytes) -> None:
    """Raises:
    ProtocolError: a frame with this header cannot come while one with ``key`` (or its beginning) is expected.
    """
    wanted = unpack_header(key.ljust(HEADER_BYTES, b"\0"))
    is_past = (header.tag.pass_id, header.tag.block) < (wanted.tag.pass_id, wanted.tag.block)
    if header.epoch != wanted.epoch or (is_past and len(key) == KEY_BYTES):
        raise ProtocolError(
            f"{peer} sent {header.tag} of epoch {header.epoch}, expected {wanted.tag} of epoch {wanted.epoch}"
        )


def refuse_size(peer: str, header: FrameHeader, capacity_bytes: int) -> ProtocolError:
    """The error for a frame that is larger than what it is received into."""
    return ProtocolError(f"{peer} sent {header.n_payload_bytes} bytes for {header.tag}, at most {capacity_bytes} fit")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS error"
    return error.strerror or type(error).__name__
