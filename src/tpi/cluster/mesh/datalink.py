"""DataLink: frames over one TLS connection, blocking and without delay; partial sums, embeddings, logits.

Does not open connections (``connect``, ``acceptor``), encode payloads (``allreduce.payload``) or watch whether the
peer lives: the control link does, and shuts this one down. One thread, the one that runs passes, sends and receives;
``shut_down`` is for every other thread.
"""

import contextlib
import selectors
import socket
import ssl
from types import TracebackType

from tpi.cluster.mesh.frames import (
    HEADER_BYTES,
    SEQUENCE_MODULUS,
    FrameBuffer,
    FrameHeader,
    FrameTag,
    PayloadType,
    pack_header,
    unpack_header,
)
from tpi.errors import LinkError, ProtocolError

DEFAULT_TIMEOUT_S = 120.0
"""A last resort: a slow device may compute for long, and whether it lives the control link knows."""


class DataLink:
    """One end of a data connection, for one epoch. Owns the socket."""

    def __init__(
        self, sock: ssl.SSLSocket, peer: str, *, epoch: int, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> None:
        """``peer`` names the other device in errors; ``timeout_s`` bounds the wait for each run of bytes."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(timeout_s)
        self._socket = sock
        self._timeout_s = timeout_s
        self._shut_down = False
        self._closed = False
        self._failure: LinkError | None = None
        self._send_sequence = 0
        self._receive_sequence = 0
        self._received_header = FrameBuffer(0)
        self.peer = peer
        self.epoch = epoch
        self.n_bytes_sent = 0
        """Headers included, TLS excluded."""
        self.n_bytes_received = 0

    def send(self, tag: FrameTag, payload_type: PayloadType, buffer: FrameBuffer, n_payload_bytes: int) -> None:
        """Send the first ``n_payload_bytes`` of ``buffer.payload``; writes the header before them.

        Blocks until the operating system has taken everything. Raises LinkError.
        """
        pack_header(buffer.frame, tag, self.epoch, self._send_sequence, payload_type, n_payload_bytes)
        self._send_all(buffer.frame[: HEADER_BYTES + n_payload_bytes])
        self._send_sequence = (self._send_sequence + 1) % SEQUENCE_MODULUS

    def receive_header(self) -> FrameHeader:
        """Wait for the next frame's header, whatever pass it is of; its payload must be received next.

        Raises LinkError, and ProtocolError for a frame of another epoch or out of sequence.
        """
        self._receive_exactly(self._received_header.frame)
        header = unpack_header(self._received_header.frame)
        if header.epoch != self.epoch or header.sequence != self._receive_sequence:
            raise ProtocolError(
                f"{self.peer} sent epoch {header.epoch} frame {header.sequence}, "
                f"expected epoch {self.epoch} frame {self._receive_sequence}"
            )
        self._receive_sequence = (self._receive_sequence + 1) % SEQUENCE_MODULUS
        return header

    def expect_header(self, tag: FrameTag) -> FrameHeader:
        """Wait for the next frame's header; raises ProtocolError naming both when it is not ``tag``'s."""
        header = self.receive_header()
        if header.tag != tag:
            raise ProtocolError(f"{self.peer} sent {header.tag}, expected {tag}")
        return header

    def receive_payload(self, header: FrameHeader, buffer: FrameBuffer, n_expected_bytes: int | None = None) -> None:
        """Receive the payload that ``header`` announced into the beginning of ``buffer.payload``.

        Raises ProtocolError, before reading, when its length is not the expected one or exceeds the buffer.
        """
        if n_expected_bytes is not None and header.n_payload_bytes != n_expected_bytes:
            raise ProtocolError(
                f"{self.peer} sent {header.n_payload_bytes} bytes of {header.payload_type.name} "
                f"for {header.tag}, expected {n_expected_bytes}"
            )
        if header.n_payload_bytes > buffer.capacity_bytes:
            raise ProtocolError(
                f"{self.peer} sent {header.n_payload_bytes} bytes for {header.tag}, at most {buffer.capacity_bytes} fit"
            )
        self._receive_exactly(buffer.payload[: header.n_payload_bytes])

    def wait_readable(self, timeout_s: float | None) -> bool:
        """Block until a frame begins to arrive or the link is down (the next receive says which).

        False when ``timeout_s`` went by; None waits for ever. For a worker between two passes.
        """
        if self._shut_down or self._socket.pending():
            return True
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                return bool(selector.select(timeout_s))
        except (OSError, ValueError):
            return True

    def shut_down(self) -> None:
        """End the connection under whoever waits on it: that call raises LinkError. From any thread, idempotent."""
        self._shut_down = True
        # Not SSLSocket.shutdown(): it would drop TLS and let the next call read or write in the clear.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Shut down and free the socket. By the owning thread, or after it has ended; idempotent."""
        self.shut_down()
        if not self._closed:
            self._closed = True
            self._socket.close()

    def __enter__(self) -> "DataLink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send_all(self, view: memoryview) -> None:
        self._check_usable()
        n_sent = 0
        try:
            while n_sent < len(view):
                n_sent += self._socket.send(view[n_sent:] if n_sent else view)
        except OSError as error:
            raise self._broken(error, "did not take") from error
        self.n_bytes_sent += n_sent

    def _receive_exactly(self, view: memoryview) -> None:
        self._check_usable()
        n_received = 0
        try:
            while n_received < len(view):
                n = self._socket.recv_into(view[n_received:] if n_received else view)
                if n == 0:
                    raise self._broken()
                n_received += n
        except OSError as error:
            raise self._broken(error, "did not send") from error
        self.n_bytes_received += n_received

    def _check_usable(self) -> None:
        if self._failure is not None:  # half a frame may be under way: nothing that follows could be understood
            raise self._failure
        if self._shut_down:
            raise self._broken()

    def _broken(self, error: OSError | None = None, what: str = "") -> LinkError:
        """The one-line error for this link's end, which every later call raises too; after ``shut_down`` ours."""
        if self._shut_down:
            text = f"the data link to {self.peer} was shut down on this side"
        elif error is None:
            text = f"{self.peer} closed the data link: its process ended or the network broke"
        elif isinstance(error, TimeoutError):
            text = f"{self.peer} {what} data for {self._timeout_s:g} s: is it still running and reachable?"
        else:
            text = f"the data link to {self.peer} broke ({_reason(error)})"
        self._failure = LinkError(text)
        return self._failure


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS error"
    return error.strerror or type(error).__name__
