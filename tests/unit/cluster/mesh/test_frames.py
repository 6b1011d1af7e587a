"""Frame headers: golden bytes, bounds, and that no bytes crash the reader."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.mesh.frames import (
    HEADER_BYTES,
    KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    NO_BLOCK,
    FrameBuffer,
    FrameHeader,
    FrameTag,
    PayloadType,
    Phase,
    unpack_header,
)
from tpi.errors import ProtocolError

TAG = FrameTag(pass_id=0x1122334455667788, block=0x0A0B0C0D, phase=Phase.PARTIAL, part=1)
GOLDEN = bytes.fromhex("74706946 02 02 01 00 04030201 0d0c0b0a 8877665544332211 00100000 01 000000")

BUFFER = FrameBuffer(MAX_PAYLOAD_BYTES)
"""Pages that nobody writes take no memory."""

u32 = st.integers(0, 2**32 - 1)
headers = st.builds(
    FrameHeader,
    st.builds(FrameTag, st.integers(0, 2**64 - 1), u32, st.sampled_from(Phase), st.integers(0, 255)),
    u32,
    st.sampled_from(PayloadType),
    st.integers(0, MAX_PAYLOAD_BYTES),
)


def packed(header: FrameHeader) -> bytes:
    BUFFER.seal(header.tag.key(header.epoch), header.payload_type, header.n_payload_bytes)
    return bytes(BUFFER.frame[:HEADER_BYTES])


def test_golden_bytes() -> None:
    header = FrameHeader(TAG, 0x01020304, PayloadType.F16, 4096)
    assert packed(header) == GOLDEN
    assert unpack_header(GOLDEN) == header
    assert TAG.key(0x01020304) == GOLDEN[:KEY_BYTES]
    assert (BUFFER.payload_type, BUFFER.n_payload_bytes) == (PayloadType.F16, 4096)


def test_a_payload_lies_behind_its_header() -> None:
    buffer = FrameBuffer(3)
    buffer.payload[:] = b"abc"
    assert bytes(buffer.frame[HEADER_BYTES:]) == b"abc" and len(buffer.frame) == HEADER_BYTES + 3
    assert buffer.address == buffer.array.ctypes.data


@given(headers)
def test_every_header_comes_back(header: FrameHeader) -> None:
    assert unpack_header(packed(header)) == header


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack_header(content)


@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_changed_header_is_refused_or_differs(position: int, change: int) -> None:
    content = bytearray(GOLDEN)
    content[position] ^= change
    with contextlib.suppress(ProtocolError):
        assert packed(unpack_header(content)) == bytes(content)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, b"HTTP", "out of step"),
        (4, b"\x01", "version"),
        (5, b"\x09", "unknown kind"),
        (7, b"\x01", "version"),
        (24, b"\x01\x00\x00\x04", "at most"),
        (28, b"\x09", "unknown kind"),
        (29, b"\x01", "version"),
        (31, b"\x01", "version"),
    ],
)
def test_what_is_refused(position: int, value: bytes, message: str) -> None:
    content = bytearray(GOLDEN)
    content[position : position + len(value)] = value
    with pytest.raises(ProtocolError, match=message):
        unpack_header(content)


def test_a_buffer_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ProtocolError, match="fewer tokens"):
        FrameBuffer(MAX_PAYLOAD_BYTES + 1)


def test_tags_read_well() -> None:
    assert str(FrameTag(3, NO_BLOCK, Phase.LOGITS)) == "pass 3 block none phase LOGITS part 0"
    assert str(TAG) == "pass 1234605616436508552 block 168496141 phase PARTIAL part 1"
