"""The first words on a new TLS connection: one hello, one answer. The only bytes that a stranger can make us read.

Knows neither who listens (``acceptor``) nor who calls (``connect``), no keys and no certificates. Runs in the thread
that opens or admits the connection, and never outlasts its deadline.

Both begin with 12 bytes whose layout no version may change, so that two versions can always tell each other apart:

====== ===== ======== ====================================================================
offset bytes field    meaning (numbers are little-endian)
====== ===== ======== ====================================================================
0      4     magic    hello ``b"tpiH"``, answer ``b"tpiA"``
4      2     version  ``tpi.version.PROTOCOL_VERSION`` of the sender
6      2     kind     of a hello its ``Purpose``, of an answer its ``Verdict``
8      4     length   bytes that follow, at most 8,192
====== ===== ======== ====================================================================

After a hello comes the MessagePack of ``JoinHello``, ``ControlHello``, ``DataHello`` or ``RelayHello``; after WELCOME
that of ``JoinWelcome`` or ``LinkWelcome``; after any other verdict a sentence in UTF-8. With another version nothing
after the 12 bytes of a hello is read.
"""

import enum
import ssl
import struct
import time
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from tpi.cluster.control.messages import MAX_SENTENCE_LENGTH, DeviceName, Epoch, Token
from tpi.errors import LinkError, ProtocolError
from tpi.version import PROTOCOL_VERSION

HELLO_MAGIC = b"tpiH"
ANSWER_MAGIC = b"tpiA"
OPENING_BYTES = 12
MAX_BODY_BYTES = 8192

_OPENING = struct.Struct("<4sHHI")
_encoder = msgspec.msgpack.Encoder()
_Body = TypeVar("_Body")


class Purpose(enum.IntEnum):
    """What a connection is for."""

    JOIN = 1
    """Without a certificate, to get one."""
    CONTROL = 2
    DATA = 3
    RELAY = 4
    """A data link to another worker, which the master passes on."""


class Verdict(enum.IntEnum):
    """How a hello was received."""

    WELCOME = 0
    REFUSED = 1
    OTHER_VERSION = 2
    REMOVED = 3
    """Refused, because the device is no longer part of the cluster."""


Der: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1, max_length=2048)]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what follows the 12 bytes."""


class JoinHello(Body, frozen=True):
    """Asks for a certificate."""

    name: DeviceName
    secret: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    signing_request: Der

    def __repr__(self) -> str:
        return f"JoinHello(name={self.name!r})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("name", self.name)]


class ControlHello(Body, frozen=True):
    """Opens a control link."""

    name: DeviceName


class DataHello(Body, frozen=True):
    """Opens a data link, with the token that the master has given to both ends."""

    name: DeviceName
    epoch: Epoch
    token: Token


class RelayHello(Body, frozen=True):
    """Opens one half of a data link between two workers that cannot reach each other."""

    name: DeviceName
    epoch: Epoch
    token: Token


class JoinWelcome(Body, frozen=True):
    """The certificate that was asked for, and that of the authority which signed it."""

    name: DeviceName
    """The name in the certificate: the one asked for, or one made unique."""
    certificate: Der
    authority: Der


class LinkWelcome(Body, frozen=True):
    """The link is open."""

    host: DeviceName
    """Who welcomes."""


AnyHello: TypeAlias = JoinHello | ControlHello | DataHello | RelayHello
HELLOS: dict[Purpose, type[AnyHello]] = {
    Purpose.JOIN: JoinHello,
    Purpose.CONTROL: ControlHello,
    Purpose.DATA: DataHello,
    Purpose.RELAY: RelayHello,
}
AnyWelcome: TypeAlias = JoinWelcome | LinkWelcome


class Opening(msgspec.Struct, frozen=True):
    """The 12 bytes, read."""

    version: int
    kind: int
    n_body_bytes: int


def pack_hello(purpose: Purpose, hello: AnyHello, version: int = PROTOCOL_VERSION) -> bytes:
    """A hello, ready to send."""
    body = _encoder.encode(hello)
    assert len(body) <= MAX_BODY_BYTES, "hellos are small"
    return _OPENING.pack(HELLO_MAGIC, version, purpose, len(body)) + body


def pack_answer(verdict: Verdict, body: AnyWelcome | str, version: int = PROTOCOL_VERSION) -> bytes:
    """An answer, ready to send; a sentence that is too long is cut."""
    content = body[:MAX_SENTENCE_LENGTH].encode() if isinstance(body, str) else _encoder.encode(body)
    return _OPENING.pack(ANSWER_MAGIC, version, verdict, len(content)) + content


def read_opening(reader: "TimedReader", magic: bytes) -> Opening:
    """The first 12 bytes; raises ProtocolError when they are none of ours or announce too much."""
    found, version, kind, n_body_bytes = _OPENING.unpack(reader.read(OPENING_BYTES))
    if found != magic:
        raise ProtocolError(f"{reader.peer} does not speak the protocol of tpi")
    if n_body_bytes > MAX_BODY_BYTES:
        raise ProtocolError(f"{reader.peer} announces {n_body_bytes} bytes, at most {MAX_BODY_BYTES} are allowed")
    return Opening(version, kind, n_body_bytes)


def decode_body(content: bytes, kind: type[_Body], peer: str) -> _Body:
    """Read what follows the 12 bytes; the error never repeats the content."""
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ProtocolError(f"{peer} sent a malformed {kind.__name__}") from None


class TimedReader:
    """Exact reads from a blocking TLS socket until a deadline that no trickle of bytes can move."""

    def __init__(self, sock: ssl.SSLSocket, peer: str, timeout_s: float) -> None:
        self._socket = sock
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self.peer = peer

    def read(self, n_bytes: int) -> bytes:
        """Exactly ``n_bytes``; raises LinkError when the peer closes or the deadline passes."""
        content = bytearray()
        while len(content) < n_bytes:
            try:
                self._socket.settimeout(max(self._deadline_s - time.monotonic(), 0.001))
                received = self._socket.recv(n_bytes - len(content))
            except TimeoutError:
                raise LinkError(f"{self.peer} did not answer within {self._timeout_s:g} s") from None
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "closed"
                raise LinkError(f"{self.peer} broke the connection off ({reason})") from None
            if not received:
                raise LinkError(f"{self.peer} closed the connection")
            content += received
        return bytes(content)
