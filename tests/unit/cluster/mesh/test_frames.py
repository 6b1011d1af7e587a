"""Frame headers: golden bytes, bounds, and that no bytes crash the reader."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.mesh.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    NO_BLOCK,
    FrameBuffer,
    FrameHeader,
    FrameTag,
    PayloadType,
    Phase,
    pack_header,
    unpack_header,
)
from tpi.errors import ProtocolError

TAG = FrameTag(pass_id=0x1122334455667788, block=0x0A0B0C0D, phase=Phase.PARTIAL)
GOLDEN = bytes.fromhex("74706946 01 03 01 00 04030201 0d0c0b0a 8877665544332211 05000000 00100000")

u32 = st.integers(0, 2**32 - 1)
headers = st.builds(
    FrameHeader,
    st.builds(FrameTag, st.integers(0, 2**64 - 1), u32, st.sampled_from(Phase)),
    u32,
    u32,
    st.sampled_from(PayloadType),
    st.integers(0, MAX_PAYLOAD_BYTES),
)


def packed(header: FrameHeader) -> bytes:
    buffer = bytearray(HEADER_BYTES)
    pack_header(
        memoryview(buffer),
        header.tag,
        header.epoch,
        header.sequence,
        header.payload_type,
        header.n_payload_bytes,
    )
    return bytes(buffer)


def test_golden_bytes() -> None:
    header = FrameHeader(TAG, 0x01020304, 5, PayloadType.F16, 4096)
    assert packed(header) == GOLDEN
    assert unpack_header(GOLDEN) == header


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
        (4, b"\x02", "version"),
        (5, b"\x09", "unknown kind"),
        (6, b"\x09", "unknown kind"),
        (7, b"\x01", "version"),
        (28, b"\x01\x00\x00\x04", "at most"),
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
    assert str(FrameTag(3, NO_BLOCK, Phase.EMBEDDINGS)) == "pass 3 block none phase EMBEDDINGS"
