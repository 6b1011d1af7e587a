"""The messages of control links and their bytes. Sends nothing; any thread.

On the wire a message is its length (u32, little-endian, 1 to 4,194,304), then one MessagePack map with the message's
fields and its tag under ``type``. Unknown tags, unknown fields, missing fields and wrong types are ProtocolErrors.

To add a message: a frozen ``Message`` subclass with a tag of its own, and its name in ``AnyMessage``. Bound every
list and string of it with ``msgspec.Meta``. A ``bytes`` field is copied when decoded, a ``memoryview`` one is not.
Any change here raises ``tpi.version.PROTOCOL_VERSION``.
"""

from typing import Annotated, TypeAlias

import msgspec

from tpi.cluster.reports import Choice, RankStatus
from tpi.config import MAX_PARALLEL
from tpi.errors import ProtocolError
from tpi.model.partition import Partition
from tpi.model.spans import Span, Spans
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
PassNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
RankNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1024)]
Digest: TypeAlias = Annotated[str, msgspec.Meta(max_length=128)]
Rate: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
Host: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:%-]+\Z")]
"""A name or an address of the Internet Protocol, without a port."""
Word: TypeAlias = Annotated[str, msgspec.Meta(max_length=32)]
Token: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all messages."""


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Says that the sender lives. Sent and swallowed by ``ControlLink``."""


class Goodbye(Message, frozen=True, tag="goodbye"):
    """The sender is about to close the link, on purpose."""

    reason: Text


class HeldShard(msgspec.Struct, frozen=True):
    """A whole shard on a worker's disk."""

    model_digest: Digest
    rank: RankNumber


class Offer(Message, frozen=True, tag="offer"):
    """Worker to master, first: what this device may use, which shards it has, and where other workers can call it.

    ``port`` 0: nowhere. ``locked`` is the partition of the shard that the device insists on, together with ``held[0]``;
    ``window_bytes`` is what weights may take at most, if somebody said so. The rates are those at which it computes and
    reads its disk; 0: not known. ``process_bytes`` is what its process has before it knows of any model.
    """

    memory_bytes: Annotated[int, msgspec.Meta(ge=1, lt=1 << 60)]
    held: Annotated[list[HeldShard], msgspec.Meta(max_length=64)]
    hosts: Annotated[tuple[Host, ...], msgspec.Meta(max_length=4)] = ()
    port: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)] = 0
    locked: Partition | None = None
    window_bytes: Annotated[int, msgspec.Meta(ge=1, lt=1 << 60)] | None = None
    flop_per_s: Rate = 0.0
    disk_bytes_per_s: Rate = 0.0
    process_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)] = 0


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
    n_parts: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    """In so many parts a long pass is computed, so that one can be summed while the other is computed."""
    n_kept_states: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    """Recurrent states of a sequence that are kept beside the latest."""
    n_sequences: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARALLEL)] = 1
    """That can be under way at once."""
    is_reproducible: bool = False
    """See ``RankSettings``."""
    is_traced: bool = False
    """What the rank does when is to be noted, until the master asks for it."""
    last_pass: PassNumber | None = None
    """Goes on with what the epoch before has kept: passes up to this one hold. None: everything is forgotten."""


class FetchRun(Message, frozen=True, tag="fetch_run"):
    """Worker to master: send rows ``rows`` of a whole tensor, of each the ranges ``columns`` one after the other."""

    number: Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
    tensor: Annotated[str, msgspec.Meta(max_length=256)]
    rows: Span
    columns: Annotated[Spans, msgspec.Meta(max_length=1 << 12)]


class RunChunk(Message, frozen=True, tag="run_chunk"):
    """Master to worker: bytes of the run ``number`` from ``offset``; ``crc32`` is that of these bytes."""

    number: int
    offset: int
    crc32: int
    data: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class Progress(Message, frozen=True, tag="progress"):
    """Worker to master: so much of its shard is there; ``how``: see ``cluster.reports.Transfer``."""

    n_done: Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
    n_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
    how: Annotated[str, msgspec.Meta(max_length=16)]


class Remarked(Message, frozen=True, tag="remarked"):
    """Worker to master, while it prepares: something that the user should know and that stops nothing, in one line."""

    text: Text


class Prepared(Message, frozen=True, tag="prepared"):
    """Worker to master: shard, window and graphs for this epoch are there; only the mesh is missing."""

    epoch: Epoch


class Peer(msgspec.Struct, frozen=True):
    """Another worker: who it is, where it can be called, and the token of the pair."""

    rank: RankNumber
    name: DeviceName
    serial: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9a-f]+\Z")]
    """Of its certificate, hexadecimal."""
    hosts: Annotated[tuple[Host, ...], msgspec.Meta(max_length=8)]
    port: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    token: Token


class OpenLinks(Message, frozen=True, tag="open_links"):
    """Master to worker: call the master and ``call``, expect calls of ``expect``, and answer ``LinksOpened``.

    ``relay`` are to be reached through the master. Links that are open already stay so.
    """

    epoch: Epoch
    master: Token | None
    call: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=1024)] = ()
    expect: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=1024)] = ()
    relay: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=1024)] = ()


class LinkFailure(msgspec.Struct, frozen=True):
    """Why this device did not reach a peer, or was not called by it."""

    rank: RankNumber
    reason: Text


class LinksOpened(Message, frozen=True, tag="links_opened"):
    """Worker to master: the answer to ``OpenLinks``; links to all others of its message are open."""

    epoch: Epoch
    failures: Annotated[tuple[LinkFailure, ...], msgspec.Meta(max_length=1024)] = ()


class SumTrial(msgspec.Struct, frozen=True):
    """A way to add up ``n_tokens`` rows, and how often it is tried."""

    algorithm: Word
    payload: Word
    n_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    n_rounds: Annotated[int, msgspec.Meta(ge=1, le=1000)]


class Measure(Message, frozen=True, tag="measure"):
    """Master to worker: take part in measuring the links (no trials), or in these trials; answer ``Measured``."""

    epoch: Epoch
    trials: Annotated[tuple[SumTrial, ...], msgspec.Meta(max_length=64)] = ()


class Measured(Message, frozen=True, tag="measured"):
    """Worker to master: one-way latency in seconds to each rank that it has called (0: others), seconds that it took to
    exchange ``n_bytes`` with everybody at once; or seconds of wall and processor time of each trial's sum."""

    epoch: Epoch
    latencies_s: Annotated[tuple[float, ...], msgspec.Meta(max_length=1024)] = ()
    n_bytes: int = 0
    exchange_s: float = 0.0
    sums_s: Annotated[tuple[float, ...], msgspec.Meta(max_length=64)] = ()
    cpu_s: Annotated[tuple[float, ...], msgspec.Meta(max_length=64)] = ()


class Begin(Message, frozen=True, tag="begin"):
    """Master to worker: sums are added up so from now on; passes come."""

    epoch: Epoch
    choice: Choice


class EndEpoch(Message, frozen=True, tag="end_epoch"):
    """Master to worker: this epoch is over; stop what runs after the pass ``last_pass``, the last that was through at
    the master, close its links, and answer ``EpochEnded``."""

    epoch: Epoch
    last_pass: PassNumber


class EpochEnded(Message, frozen=True, tag="epoch_ended"):
    """Worker to master: nothing of it runs any more; ``last_pass`` is the last that was through here, 0 if none was."""

    epoch: Epoch
    last_pass: PassNumber


class Revoked(Message, frozen=True, tag="revoked"):
    """Master to worker: the device with this certificate is no longer part of the cluster."""

    serial: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9a-f]+\Z")]


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


class ClockRequest(Message, frozen=True, tag="clock_request"):
    """Master to worker: tell your clock, at once."""

    number: int


class ClockReply(Message, frozen=True, tag="clock_reply"):
    """Worker to master: the answer to the request of the same number; seconds of its monotonic clock."""

    number: int
    at_s: float


class TraceRequest(Message, frozen=True, tag="trace_request"):
    """Master to worker: tell what was noted; then it is forgotten."""

    number: int


class TraceReply(Message, frozen=True, tag="trace_reply"):
    """Worker to master: the answer to the request of the same number: events as in ``trace``, the oldest first,
    as many as fit; ``n_dropped`` were not kept."""

    number: int
    events: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
    n_dropped: int


class PrefixDone(Message, frozen=True, tag="prefix_done"):
    """Worker to master: the answer to the order of the same number, which came between two passes: bytes of its file,
    or why it could not be done, in one line."""

    number: int
    n_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
    refusal: Text = ""


AnyMessage: TypeAlias = (
    Heartbeat
    | Goodbye
    | Offer
    | Plan
    | FetchRun
    | RunChunk
    | Progress
    | Remarked
    | Prepared
    | OpenLinks
    | LinksOpened
    | Measure
    | Measured
    | Begin
    | EndEpoch
    | EpochEnded
    | Revoked
    | Failed
    | StatusRequest
    | StatusReply
    | ClockRequest
    | ClockReply
    | TraceRequest
    | TraceReply
    | PrefixDone
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
