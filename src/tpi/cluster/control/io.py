"""The I/O loop of a control link: one thread that alone reads, writes and closes one non-blocking TLS socket.

Owns the socket and the half-read and half-written message; the queues are the ``Mailbox``'s. Python's TLS sockets may
not be read and written by two threads at once, hence one loop for both.
"""

import contextlib
import selectors
import socket
import ssl
import time
from collections.abc import Callable

import msgspec

from tpi.cluster.control.mailbox import Mailbox
from tpi.cluster.control.messages import (
    LENGTH_BYTES,
    AnyMessage,
    Heartbeat,
    decode_length,
    decode_message,
    encode_message,
)
from tpi.errors import LinkError

_HEARTBEAT = encode_message(Heartbeat())
_CALLS_PER_TURN = 64
"""Reads, or writes, before the other direction gets its turn."""


class ControlSettings(msgspec.Struct, frozen=True):
    """Of a control link."""

    heartbeat_s: float = 0.2
    silence_limit_s: float = 1.9
    """A peer from which nothing at all came for so long is lost; one that stood still for 1.5 s, as devices do that
    swap or wake a disk, is heard of in time."""
    max_outbox_bytes: int = 1 << 20
    """``wait_send`` waits while more than this would be queued."""
    max_inbox_bytes: int = 8 << 20
    """Nothing is read from the peer while more than this waits for ``receive``."""
    linger_s: float = 1.0
    """How long ``close`` tries to get out what is queued."""


class ControlIO:
    """Runs in the I/O thread alone, but for ``wake``."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        peer: str,
        settings: ControlSettings,
        deliver: Callable[[AnyMessage, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``deliver`` gets every message but heartbeats, and the bytes it took."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._socket = sock
        self._peer = peer
        self._settings = settings
        self._deliver = deliver
        self._clock = clock
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._prefix = bytearray(LENGTH_BYTES)
        self._incoming = memoryview(self._prefix)
        self._reads_prefix = True
        self._n_incoming = 0
        self._outgoing = memoryview(b"")
        self._wants_write = False
        self._has_more = False
        self._heard_s = clock()
        self._heartbeat_s = self._heard_s
        self.n_bytes_sent = 0
        self.n_bytes_received = 0

    def wake(self) -> None:
        """Make the loop look at the mailbox; from any thread, never blocks."""
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it has ended
            self._wake_sender.send(b"x")

    def run(self, mailbox: Mailbox) -> None:
        """Move messages until this side closes; raises LinkError or ProtocolError when the peer ends it."""
        close_by_s: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while True:
                if mailbox.closing and close_by_s is None:
                    close_by_s = self._clock() + self._settings.linger_s
                reads = mailbox.has_room_for_incoming()
                self._wait(selector, reads, close_by_s)
                self._has_more = False
                if reads:
                    self._read()
                self._write(mailbox)
                now_s = self._clock()
                sent_all = not self._outgoing and not mailbox.has_outgoing()
                if close_by_s is not None and (sent_all or now_s >= close_by_s):
                    self._part(close_by_s)
                    return
                self._check_silence(now_s, reads)

    def close(self) -> None:
        """Free the sockets; idempotent, after ``run``."""
        for sock in (self._socket, self._wake_receiver, self._wake_sender):
            sock.close()

    def _wait(self, selector: selectors.BaseSelector, reads: bool, close_by_s: float | None) -> None:
        events = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if self._wants_write else 0)
        registered = self._socket in selector.get_map()
        if events and registered:
            selector.modify(self._socket, events)
        elif events:
            selector.register(self._socket, events)
        elif registered:
            selector.unregister(self._socket)
        until_s = min(self._heartbeat_s, self._heard_s + self._settings.silence_limit_s)
        if close_by_s is not None:
            until_s = min(until_s, close_by_s) if self._outgoing else 0.0
        selector.select(0 if self._has_more else max(until_s - self._clock(), 0))
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(4096)

    def _read(self) -> None:
        """Take what has arrived; also what TLS has decrypted already, of which no selector knows."""
        for _ in range(_CALLS_PER_TURN):
            try:
                n = self._socket.recv_into(self._incoming[self._n_incoming :])
            except ssl.SSLWantReadError:
                return
            except ssl.SSLWantWriteError:
                self._wants_write = True
                return
            except OSError as error:
                raise self._broken(error) from None
            if n == 0:
                raise LinkError(f"{self._peer} closed the control link: its process ended or the network broke")
            self._heard_s = self._clock()
            self.n_bytes_received += n
            self._n_incoming += n
            if self._n_incoming == len(self._incoming):
                self._finish_run()
        self._has_more = True

    def _finish_run(self) -> None:
        """A prefix or a message is complete."""
        complete = self._incoming
        self._n_incoming = 0
        self._reads_prefix = not self._reads_prefix
        if not self._reads_prefix:
            self._incoming = memoryview(bytearray(decode_length(complete)))
            return
        self._incoming = memoryview(self._prefix)
        message = decode_message(complete)
        if not isinstance(message, Heartbeat):
            self._deliver(message, len(complete))

    def _write(self, mailbox: Mailbox) -> None:
        """Send what is queued, as far as it goes without blocking; a heartbeat when nothing is and one is due."""
        self._wants_write = False
        for _ in range(_CALLS_PER_TURN):
            if not self._outgoing:
                self._outgoing = memoryview(mailbox.next_outgoing() or self._due_heartbeat())
                if not self._outgoing:
                    return
            self._heartbeat_s = self._clock() + self._settings.heartbeat_s
            try:
                n = self._socket.send(self._outgoing)
            except ssl.SSLWantWriteError:
                self._wants_write = True
                return
            except ssl.SSLWantReadError:
                return
            except OSError as error:
                raise self._broken(error) from None
            self.n_bytes_sent += n
            self._outgoing = self._outgoing[n:]
        self._has_more = True

    def _due_heartbeat(self) -> bytes:
        return _HEARTBEAT if self._clock() >= self._heartbeat_s else b""

    def _check_silence(self, now_s: float, reads: bool) -> None:
        """After reading, so that what came while this process was stopped counts."""
        if not reads:
            self._heard_s = now_s
        elif now_s - self._heard_s > self._settings.silence_limit_s:
            raise LinkError(
                f"{self._peer} gave no sign of life for {self._settings.silence_limit_s:g} s: "
                "is it switched on and connected?"
            )

    def _part(self, close_by_s: float) -> None:
        """Let the last bytes arrive: closing a socket with unread bytes would destroy them on their way."""
        with contextlib.suppress(OSError, ValueError):
            self._socket.unwrap()  # sends TLS's farewell; that the peer's has not come yet is no matter
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            left_s = close_by_s - self._clock()
            while left_s > 0:
                self._socket.settimeout(left_s)
                if not socket.socket.recv(self._socket, 65536):
                    return
                left_s = close_by_s - self._clock()

    def _broken(self, error: OSError) -> LinkError:
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        return LinkError(f"the control link to {self._peer} broke ({reason})")
