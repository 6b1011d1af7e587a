"""The frames of a data link: header, its bytes, and the buffer that a frame is sent from and received into.

Knows nothing of sockets (``datalink``) or of what a payload means (``allreduce.payload``). No thread of its own.

All numbers are little-endian. A frame is 32 bytes of header and ``length`` bytes of payload:

====== ===== ========= =====================================================================
offset bytes field     meaning
====== ===== ========= =====================================================================
0      4     magic     ``b"tpiF"``
4      1     version   1
5      1     phase     ``Phase``: what part of a pass this frame belongs to
6      1     payload   ``PayloadType``: how the payload is encoded
7      1     reserved  0
8      4     epoch     of both ends; a frame of another epoch is an error
12     4     block     index in execution order, 0xFFFFFFFF where a frame belongs to no block
16     8     pass      number of the pass within the session
24     4     sequence  counts the frames of one direction of one link from 0, modulo 2**32
28     4     length    bytes of payload that follow, at most 67,108,864
====== ===== ========= =====================================================================
"""

import enum
import struct

import msgspec
import numpy as np

from tpi.errors import ProtocolError

MAGIC = b"tpiF"
FRAME_VERSION = 1
HEADER_BYTES = 32
MAX_PAYLOAD_BYTES = 64 << 20
NO_BLOCK = 0xFFFFFFFF
SEQUENCE_MODULUS = 1 << 32

_HEADER = struct.Struct("<4sBBBBIIQII")


class Phase(enum.IntEnum):
    """The part of a pass that a frame belongs to."""

    PASS = 1
    """Master to workers: what this pass is (tokens, positions, cells, mask)."""
    EMBEDDINGS = 2
    """Master to workers: the rows of the residual stream that the pass begins with."""
    PARTIAL = 3
    """One rank's contribution to an allreduce."""
    TOTAL = 4
    """The result of an allreduce."""
    LOGITS = 5
    """Workers to master: logits of their vocabulary rows."""


class PayloadType(enum.IntEnum):
    """How the bytes of a payload are to be read."""

    F32 = 0
    F16 = 1
    FAULT = 2
    """In place of a total: it does not exist, and why (``allreduce.payload``)."""
    BYTES = 3
    """Bytes with a meaning of their own, such as a message."""


class FrameTag(msgspec.Struct, frozen=True):
    """Which frame: what both ends must agree upon beside epoch and sequence number."""

    pass_id: int
    block: int
    phase: Phase

    def __str__(self) -> str:
        block = "none" if self.block == NO_BLOCK else str(self.block)
        return f"pass {self.pass_id} block {block} phase {self.phase.name}"


class FrameHeader(msgspec.Struct, frozen=True):
    """A header as it was received; values are within their bounds."""

    tag: FrameTag
    epoch: int
    sequence: int
    payload_type: PayloadType
    n_payload_bytes: int


class FrameBuffer:
    """Memory for one frame, the header directly before the payload, so that a frame leaves in one piece.

    Allocated once; its pages become resident as they are used. Whoever creates it owns it; it serves one thread.
    """

    def __init__(self, capacity_bytes: int) -> None:
        if not 0 <= capacity_bytes <= MAX_PAYLOAD_BYTES:
            raise ProtocolError(
                f"a frame of {capacity_bytes} bytes is larger than the {MAX_PAYLOAD_BYTES} that a link carries: "
                "use passes of fewer tokens"
            )
        self.capacity_bytes = capacity_bytes
        self.array = np.zeros(HEADER_BYTES + capacity_bytes, dtype=np.uint8)
        self.frame: memoryview = self.array.data
        """Header and payload."""
        self.payload = self.frame[HEADER_BYTES:]


def pack_header(
    buffer: memoryview, tag: FrameTag, epoch: int, sequence: int, payload_type: PayloadType, n_payload_bytes: int
) -> None:
    """Write a header into the first 32 bytes of ``buffer``."""
    _HEADER.pack_into(
        buffer,
        0,
        MAGIC,
        FRAME_VERSION,
        tag.phase,
        payload_type,
        0,
        epoch,
        tag.block,
        tag.pass_id,
        sequence,
        n_payload_bytes,
    )


def unpack_header(buffer: bytes | bytearray | memoryview) -> FrameHeader:
    """Read the header in the first 32 bytes of ``buffer``; raises ProtocolError for anything that is none."""
    magic, version, phase, payload_type, reserved, epoch, block, pass_id, sequence, length = _HEADER.unpack_from(buffer)
    if magic != MAGIC:
        raise ProtocolError(f"a frame begins with {magic!r} instead of {MAGIC!r}: the data link is out of step")
    if version != FRAME_VERSION or reserved != 0:
        raise ProtocolError(f"a frame has version {version}.{reserved}, this device speaks {FRAME_VERSION}.0")
    if length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a frame announces {length} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")
    try:
        tag = FrameTag(pass_id, block, Phase(phase))
        known_type = PayloadType(payload_type)
    except ValueError as error:
        raise ProtocolError(f"a frame has an unknown kind: {error}") from None
    return FrameHeader(tag, epoch, sequence, known_type, length)
