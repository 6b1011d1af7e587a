"""The messages of control links and their bytes. Sends nothing; any thread.

On the wire a message is its length (u32, little-endian, 1 to 4,194,304), then one MessagePack map with the message's
fields and its tag under ``type``. Unknown tags, unknown fields, missing fields and wrong types are ProtocolErrors.

To add a message: a frozen ``Message`` subclass with a tag of its own, and its name in ``AnyMessage``. Bound every
list and string of it with ``msgspec.Meta``. A ``bytes`` field is copied when decoded, a ``memoryview`` one is not.
Any change here raises ``tpi.version.PROTOCOL_VERSION``.
"""

from typing import Annotated, TypeAlias

import msgspec

from tpi.cluster.reports import RankStatus
from tpi.errors import ProtocolError
from tpi.model.partition import Partition, Span
from tpi.model.spec import ModelSpec

MAX_MESSAGE_BYTES = 4 << 20
LENGTH_BYTES = 4
MAX_SENTENCE_LENGTH = 500
MAX_CELLS = 1 << 24

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=1000)]
"""A sentence for a person."""
DeviceName: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")
]
Epoch: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
RankNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1024)]
Digest: TypeAlias = Annotated[str, msgspec.Meta(max_length=128)]
Rate: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
Token: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all messages."""


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Says that the sender lives. Sent and swallowed by ``ControlLink``."""


class Goodbye(Message, frozen=True, tag="goodbye"):
    """The sender is about to close the link, on purpose."""

    reason: Text


class OpenData(Message, frozen=True, tag="open_data"):
    """Master to worker: connect a data link for this epoch, and show the token, which works once."""

    epoch: Epoch
    token: Token


class HeldShard(msgspec.Struct, frozen=True):
    """A whole shard on a worker's disk."""

    model_digest: Digest
    rank: RankNumber


class Offer(Message, frozen=True, tag="offer"):
    """Worker to master, first: what this device may use, and which shards it has.

    ``locked`` is the partition of the shard that the device insists on, together with ``held[0]``; ``window_bytes`` is
    what weights may take at most, if somebody said so. The rates are those
    at which it computes and reads its disk; 0: not known.
    """

    memory_bytes: Annotated[int, msgspec.Meta(ge=1, lt=1 << 60)]
    held: Annotated[list[HeldShard], msgspec.Meta(max_length=64)]
    locked: Partition | None = None
    window_bytes: Annotated[int, msgspec.Meta(ge=1, lt=1 << 60)] | None = None
    flop_per_s: Rate = 0.0
    disk_bytes_per_s: Rate = 0.0


class Plan(Message, frozen=True, tag="plan"):
    """Master to worker: the rank it has, and all that it needs to prepare for passes."""

    epoch: Epoch
    rank: RankNumber
    spec: ModelSpec
    partition: Partition
    n_cells: Annotated[int, msgspec.Meta(ge=1, le=MAX_CELLS)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    max_sampled: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    payload: Annotated[str, msgspec.Meta(max_length=8)]
    kv_type: Annotated[str, msgspec.Meta(max_length=8)]


class FetchRun(Message, frozen=True, tag="fetch_run"):
    """Worker to master: send rows ``rows`` and columns ``columns`` of a whole tensor."""

    number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
    tensor: Annotated[str, msgspec.Meta(max_length=256)]
    rows: Span
    columns: Span


class RunChunk(Message, frozen=True, tag="run_chunk"):
    """Master to worker: bytes of the run ``number`` from ``offset``; ``crc32`` is that of these bytes."""

    number: int
    offset: int
    crc32: int
    data: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class Progress(Message, frozen=True, tag="progress"):
    """Worker to master: so much of its shard is there; ``how`` is cut, received or reused."""

    n_done: Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
    n_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
    how: Annotated[str, msgspec.Meta(max_length=16)]


class Prepared(Message, frozen=True, tag="prepared"):
    """Worker to master: shard, window and graphs are there; only the data link is missing."""


class Failed(Message, frozen=True, tag="failed"):
    """Worker to master: it cannot go on, and why, in one line."""

    reason: Text


class StatusRequest(Message, frozen=True, tag="status_request"):
    """Master to worker: tell your figures."""

    number: int


class StatusReply(Message, frozen=True, tag="status_reply"):
    """Worker to master: the answer to the request of the same number."""

    number: int
    status: RankStatus


AnyMessage: TypeAlias = (
    Heartbeat
    | Goodbye
    | OpenData
    | Offer
    | Plan
    | FetchRun
    | RunChunk
    | Progress
    | Prepared
    | Failed
    | StatusRequest
    | StatusReply
)
"""Every message that a control link carries."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode_message(message: AnyMessage) -> bytes:
    """Length and content, ready to send; raises ProtocolError when the message is too long."""
    encoded = bytearray(LENGTH_BYTES)
    _encoder.encode_into(message, encoded, LENGTH_BYTES)
    length = len(encoded) - LENGTH_BYTES
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"a {type(message).__name__} message of {length} bytes exceeds the limit of {MAX_MESSAGE_BYTES}"
        )
    encoded[:LENGTH_BYTES] = length.to_bytes(LENGTH_BYTES, "little")
    return bytes(encoded)


def decode_length(prefix: bytes | bytearray | memoryview) -> int:
    """The length of the message that follows a 4-byte ``prefix``; raises ProtocolError outside the bounds."""
    length = int.from_bytes(prefix, "little")
    if not 1 <= length <= MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message announces {length} bytes, 1 to {MAX_MESSAGE_BYTES} are allowed")
    return length


def decode_message(content: bytes | bytearray | memoryview) -> AnyMessage:
    """Read a message's content (without the length); raises ProtocolError."""
    try:
        return _decoder.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a message cannot be understood: {one_line(str(error))}") from None


def one_line(text: str) -> str:
    """``text`` from a peer without anything that moves a terminal's cursor, at most 500 characters of it."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_SENTENCE_LENGTH])
