"""The listening port: accepts connections, makes their handshakes, hands over those that a gate admits.

Decides nothing itself (``gate``) and does not use the links (``control``, ``datalink``). Threads: one that only
accepts, and one per handshake, at most ``MAX_HANDSHAKES``, each ended by a deadline. When all are taken, the oldest
handshake that had a fair time makes room, so that strangers who dawdle cannot keep devices out.
"""

import contextlib
import queue
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from tpi.cluster.pairing.addresses import describe_peer
from tpi.cluster.pairing.gate import Gate, LinkHello
from tpi.cluster.pairing.hello import (
    HELLO_MAGIC,
    HELLOS,
    JoinHello,
    Purpose,
    TimedReader,
    Verdict,
    decode_body,
    pack_answer,
    read_opening,
)
from tpi.cluster.pairing.tls import Device, peer_device
from tpi.errors import LinkError, ProtocolError, RemovedError, TpiError
from tpi.version import PROTOCOL_VERSION, VERSION

MAX_HANDSHAKES = 16
DEADLINE_S = 5.0
FAIR_S = 1.0
"""How long a handshake may take while others wait for its place."""
_FAREWELL_S = 0.5


@dataclass(frozen=True)
class AcceptedLink:
    """An open, authenticated connection; whoever receives it owns the socket (blocking, without a timeout)."""

    socket: ssl.SSLSocket
    device: Device
    hello: LinkHello
    """``ControlHello``, ``DataHello`` or ``RelayHello``: what the connection is for."""
    address: str
    """Where the peer calls from."""


def close_untaken(links: "queue.Queue[AcceptedLink]") -> None:
    """Ends links that came and that nobody took."""
    with contextlib.suppress(queue.Empty):
        while True:
            links.get_nowait().socket.close()


class _OtherVersionError(ProtocolError):
    """The peer is of another version, of which nothing more can be read."""


@dataclass(eq=False)
class _Handshake:
    socket: ssl.SSLSocket
    address: str
    begun_s: float = field(default_factory=time.monotonic)
    thread: threading.Thread | None = None
    over: bool = False
    """The socket is closed or about to be somebody else's."""

    def abandon(self) -> None:
        """End it from another thread: whatever it waits for fails."""
        if not self.over:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Acceptor:
    """Serves one listening socket, which it owns, from construction to ``close``."""

    def __init__(
        self,
        listener: socket.socket,
        gate: Gate,
        on_link: Callable[[AcceptedLink], None],
        on_refused: Callable[[str], None] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """``on_link`` and ``on_refused`` (one line: who and why) run in handshake threads and must be quick."""
        self._listener = listener
        self._gate = gate
        self._context = gate.server_context()
        self._on_link = on_link
        self._on_refused = on_refused
        self._deadline_s = deadline_s
        self._changed = threading.Condition()
        self._handshakes: list[_Handshake] = []  # oldest first
        self._closing = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        listener.setblocking(False)
        self._thread = threading.Thread(target=self._accept_all, name="tpi-accept", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening, end unfinished handshakes, wait for the threads; idempotent. Not from a callback."""
        with self._changed:
            first, self._closing = not self._closing, True
            self._changed.notify_all()
        if not first:
            return
        self._wake_sender.send(b"x")
        self._thread.join()
        with self._changed:
            handshakes = list(self._handshakes)  # no more will come
            for handshake in handshakes:
                handshake.abandon()
        for handshake in handshakes:
            if handshake.thread is not None:
                handshake.thread.join()
        for sock in (self._listener, self._wake_receiver, self._wake_sender):
            sock.close()

    def __enter__(self) -> "Acceptor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while not self._closing:
                selector.select()
                if self._wait_for_room():
                    self._accept_one()

    def _wait_for_room(self) -> bool:
        """Until a handshake may begin; false when closing."""
        with self._changed:
            while not self._closing and len(self._handshakes) >= MAX_HANDSHAKES:
                oldest = next((handshake for handshake in self._handshakes if not handshake.over), None)
                fair_until_s = oldest.begun_s + FAIR_S if oldest else 0.0
                if oldest and time.monotonic() >= fair_until_s:
                    oldest.abandon()
                self._changed.wait(max(fair_until_s - time.monotonic(), 0.05))
            return not self._closing

    def _accept_one(self) -> None:
        try:
            plain, peer = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # the peer is gone already, or no descriptors are left: do not spin
            time.sleep(0.05)
            return
        try:
            plain.setblocking(True)
            plain.settimeout(self._deadline_s)
            sock = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        except OSError:
            plain.close()
            return
        handshake = _Handshake(sock, describe_peer(peer))
        handshake.thread = threading.Thread(target=self._run, args=(handshake,), name="tpi-handshake", daemon=True)
        with self._changed:
            self._handshakes.append(handshake)
        try:
            handshake.thread.start()
        except RuntimeError:  # no more threads
            handshake.thread = None
            self._forget(handshake)
            sock.close()

    def _run(self, handshake: _Handshake) -> None:
        link: AcceptedLink | None = None
        try:
            link = self._shake_hands(handshake)
        except TpiError as error:
            self._report(f"{handshake.address}: {error}")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            self._report(f"{handshake.address}: no TLS handshake ({reason})")
        finally:
            with self._changed:
                handshake.over = True
            try:
                if link is None:
                    handshake.socket.close()
                else:
                    self._hand_over(link)
            finally:
                self._forget(handshake)

    def _shake_hands(self, handshake: _Handshake) -> AcceptedLink | None:
        """The link, or None for a join, which ends with its answer."""
        sock = handshake.socket
        sock.do_handshake()
        left_s = max(handshake.begun_s + self._deadline_s - time.monotonic(), 0.001)
        reader = TimedReader(sock, handshake.address, left_s)
        device = peer_device(sock)
        try:
            opening = read_opening(reader, HELLO_MAGIC)
            if opening.version != PROTOCOL_VERSION:
                raise _OtherVersionError(
                    f"speaks protocol version {opening.version}, this device {PROTOCOL_VERSION}: "
                    "install the same version of tpi on both"
                )
            if opening.kind not in HELLOS:
                raise ProtocolError(f"asks for an unknown purpose, {opening.kind}")
            content = reader.read(opening.n_body_bytes)
            hello = decode_body(content, HELLOS[Purpose(opening.kind)], handshake.address)
            if isinstance(hello, JoinHello):
                self._answer(sock, pack_answer(Verdict.WELCOME, self._gate.join(hello)))
                return None
            if device is None:
                raise ProtocolError("asks for a link without a certificate")
            welcome = self._gate.admit(device, hello)
        except _OtherVersionError:
            self._answer(sock, pack_answer(Verdict.OTHER_VERSION, f"tpi {VERSION}"))
            raise
        except RemovedError as error:
            self._answer(sock, pack_answer(Verdict.REMOVED, str(error)))
            raise
        except LinkError:  # nobody is there to hear an answer
            raise
        except TpiError as error:
            self._answer(sock, pack_answer(Verdict.REFUSED, str(error)))
            raise
        sock.sendall(pack_answer(Verdict.WELCOME, welcome))
        sock.settimeout(None)
        return AcceptedLink(sock, device, hello, handshake.address)

    def _answer(self, sock: ssl.SSLSocket, answer: bytes) -> None:
        """Send the last bytes of a connection, and let them arrive.

        Closing a socket with unread bytes resets the connection and would destroy the answer on its way.
        """
        with contextlib.suppress(OSError):
            sock.settimeout(_FAREWELL_S)
            sock.sendall(answer)
            socket.socket.shutdown(sock, socket.SHUT_WR)
            deadline_s = time.monotonic() + _FAREWELL_S
            while time.monotonic() < deadline_s and socket.socket.recv(sock, 4096):
                pass

    def _hand_over(self, link: AcceptedLink) -> None:
        try:
            link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._on_link(link)
        except (TpiError, OSError) as error:
            link.socket.close()
            self._report(f"{link.address}: {error}")

    def _forget(self, handshake: _Handshake) -> None:
        with self._changed:
            self._handshakes.remove(handshake)
            self._changed.notify_all()

    def _report(self, text: str) -> None:
        if self._on_refused is not None and not self._closing:
            self._on_refused(text)
