"""The frames of data links: header, its bytes, and the buffer that a frame is sent from and received into.

Knows nothing of sockets (``datalink``) or of what a payload means. No thread of its own.

All numbers are little-endian. A frame is 32 bytes of header and ``length`` bytes of payload:

====== ===== ========= =====================================================================
offset bytes field     meaning
====== ===== ========= =====================================================================
0      4     magic     ``b"tpiF"``
4      1     version   2
5      1     phase     ``Phase``: what part of a pass this frame belongs to
6      1     part      which run of the pass's rows, 0 or 1 (a pass may be summed in two)
7      1     reserved  0
8      4     epoch     of both ends; a frame of another epoch is an error
12     4     block     index in execution order, 0xFFFFFFFF where a frame belongs to no block
16     8     pass      number of the pass within the session
24     4     length    bytes of payload that follow, at most 67,108,864
28     1     payload   ``PayloadType``: how the payload is encoded
29     3     reserved  0
====== ===== ========= =====================================================================

The first 24 bytes are the frame's key: what both ends must agree upon. Frames of equal keys arrive in the order in
which they were sent; TLS guards their bytes.
"""

import enum
import struct

import msgspec
import numpy as np
import numpy.typing as npt

from tpi.errors import ProtocolError

MAGIC = b"tpiF"
FRAME_VERSION = 2
HEADER_BYTES = 32
KEY_BYTES = 24
MAX_PAYLOAD_BYTES = 64 << 20
NO_BLOCK = 0xFFFFFFFF

_KEY = struct.Struct("<4sBBBBIIQ")
_TAIL = struct.Struct("<IB3x")


class Phase(enum.IntEnum):
    """The part of a pass that a frame belongs to."""

    PASS = 1
    """Master to workers: what this pass is, with the rows of the residual stream that it begins with."""
    PARTIAL = 2
    """One rank's contribution to an allreduce, or what became of several on their way."""
    TOTAL = 3
    """The result of an allreduce, or a part of it."""
    LOGITS = 4
    """Workers to master: logits of their vocabulary rows."""
    PROBE = 5
    """No pass at all: how long frames take is measured."""


class PayloadType(enum.IntEnum):
    """How the bytes of a payload are to be read."""

    F32 = 0
    F16 = 1
    FAULT = 2
    """In place of numbers: they do not exist, and why (``allreduce.payload``)."""
    BYTES = 3
    """Bytes with a meaning of their own."""
    INT8 = 4
    """Blocks of 32 values: an F16 scale, then 32 signed bytes."""
    NONE = 5
    """No bytes: nobody has contributed yet."""


_PAYLOAD_TYPES = {entry.value: entry for entry in PayloadType}


class FrameTag(msgspec.Struct, frozen=True):
    """Which frame of an epoch."""

    pass_id: int
    block: int
    phase: Phase
    part: int = 0

    def key(self, epoch: int) -> bytes:
        """The first bytes of its header."""
        return _KEY.pack(MAGIC, FRAME_VERSION, self.phase, self.part, 0, epoch, self.block, self.pass_id)

    def __str__(self) -> str:
        block = "none" if self.block == NO_BLOCK else str(self.block)
        return f"pass {self.pass_id} block {block} phase {self.phase.name} part {self.part}"


class FrameHeader(msgspec.Struct, frozen=True):
    """A header as it was received; values are within their bounds."""

    tag: FrameTag
    epoch: int
    payload_type: PayloadType
    n_payload_bytes: int


class FrameBuffer:
    """Memory for one frame, the header directly before the payload, so that a frame leaves in one piece.

    Allocated once; its pages become resident as they are used. Whoever creates it owns it; it serves one thread at a
    time.
    """

    def __init__(self, capacity_bytes: int, memory: npt.NDArray[np.uint8] | None = None) -> None:
        """``memory``: of somebody else, who keeps it, with room for header and payload.

        Raises:
            ProtocolError: a frame cannot be so large.
        """
        check_capacity(capacity_bytes)
        self.capacity_bytes = capacity_bytes
        self.array = np.zeros(HEADER_BYTES + capacity_bytes, dtype=np.uint8) if memory is None else memory
        self.frame: memoryview = self.array.data
        """Header and payload."""
        self.payload = self.frame[HEADER_BYTES:]
        self.address: int = self.array.ctypes.data
        """Of the frame, for C; valid as long as this lives."""

    def seal(self, key: bytes, payload_type: PayloadType, n_payload_bytes: int) -> None:
        """Writes the header for the first ``n_payload_bytes`` of the payload."""
        assert n_payload_bytes <= self.capacity_bytes
        self.frame[:KEY_BYTES] = key
        _TAIL.pack_into(self.frame, KEY_BYTES, n_payload_bytes, payload_type)

    @property
    def n_payload_bytes(self) -> int:
        """As the header says."""
        return int(_TAIL.unpack_from(self.frame, KEY_BYTES)[0])

    @property
    def payload_type(self) -> PayloadType:
        """As the header says."""
        return _PAYLOAD_TYPES[_TAIL.unpack_from(self.frame, KEY_BYTES)[1]]

    @property
    def tag(self) -> "FrameTag":
        """As the header says."""
        return unpack_header(self.frame).tag


def check_capacity(capacity_bytes: int) -> None:
    """Raises:
    ProtocolError: a frame cannot be so large.
    """
    if not 0 <= capacity_bytes <= MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            f"a frame of {capacity_bytes} bytes is larger than the {MAX_PAYLOAD_BYTES} that a link carries: "
            "use passes of fewer tokens, or a shorter context"
        )


def unpack_header(buffer: bytes | bytearray | memoryview) -> FrameHeader:
    """Reads the header in the first 32 bytes of ``buffer``; raises ProtocolError for anything that is none."""
    magic, version, phase, part, reserved, epoch, block, pass_id = _KEY.unpack_from(buffer)
    length, payload_type = _TAIL.unpack_from(buffer, KEY_BYTES)
    if magic != MAGIC:
        raise ProtocolError(f"a frame begins with {magic!r} instead of {MAGIC!r}: the data link is out of step")
    if version != FRAME_VERSION or reserved != 0 or any(buffer[KEY_BYTES + _TAIL.size - 3 : HEADER_BYTES]):
        raise ProtocolError(f"a frame has version {version}.{reserved}, this device speaks {FRAME_VERSION}.0")
    if length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a frame announces {length} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")
    try:
        tag = FrameTag(pass_id, block, Phase(phase), part)
        known_type = PayloadType(payload_type)
    except ValueError as error:
        raise ProtocolError(f"a frame has an unknown kind: {error}") from None
    return FrameHeader(tag, epoch, known_type, length)
