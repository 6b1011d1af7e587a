"""Control messages: golden bytes, bounds, and that no bytes crash the reader."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.control.messages import (
    MAX_MESSAGE_BYTES,
    AnyMessage,
    Goodbye,
    Heartbeat,
    Offer,
    OpenData,
    decode_length,
    decode_message,
    encode_message,
    one_line,
)
from tpi.errors import ProtocolError


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (Heartbeat(), b"\x10\x00\x00\x00\x81\xa4type\xa9heartbeat"),
        (Goodbye("bye"), b"\x19\x00\x00\x00\x82\xa4type\xa7goodbye\xa6reason\xa3bye"),
        (
            OpenData(7, b"0123456789abcdef"),
            b"\x2f\x00\x00\x00\x83\xa4type\xa9open_data\xa5epoch\x07\xa5token\xc4\x100123456789abcdef",
        ),
    ],
)
def test_golden_bytes(message: AnyMessage, golden: bytes) -> None:
    assert encode_message(message) == golden
    assert decode_length(golden[:4]) == len(golden) - 4
    assert decode_message(golden[4:]) == message


@given(
    st.one_of(
        st.builds(Goodbye, st.text(max_size=1000)),
        st.builds(OpenData, st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16)),
    )
)
def test_every_message_comes_back(message: AnyMessage) -> None:
    assert decode_message(encode_message(message)[4:]) == message


@given(st.floats(0, 1e17), st.floats(0, 1e17))
def test_an_offer_with_and_without_rates(flop_per_s: float, disk_bytes_per_s: float) -> None:
    offer = Offer(1 << 30, [], flop_per_s=flop_per_s, disk_bytes_per_s=disk_bytes_per_s)
    assert decode_message(encode_message(offer)[4:]) == offer
    plain = msgspec.msgpack.encode({"type": "offer", "memory_bytes": 1, "held": []})
    assert decode_message(plain) == Offer(1, [], None, None, 0.0, 0.0)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_message(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x91" * 200_000,
        msgspec.msgpack.encode({"type": "nonsense"}),
        msgspec.msgpack.encode({"reason": "no type"}),
        msgspec.msgpack.encode({"type": "goodbye"}),
        msgspec.msgpack.encode({"type": "goodbye", "reason": "x", "more": 1}),
        msgspec.msgpack.encode({"type": "goodbye", "reason": "x" * 1001}),
        msgspec.msgpack.encode({"type": "open_data", "epoch": -1, "token": bytes(16)}),
        msgspec.msgpack.encode({"type": "open_data", "epoch": 1, "token": bytes(15)}),
        *(
            msgspec.msgpack.encode({"type": "offer", "memory_bytes": 1, "held": [], name: rate})
            for name in ("flop_per_s", "disk_bytes_per_s")
            for rate in (-1.0, float("nan"), float("inf"), 1e18, "1")
        ),
        msgspec.msgpack.encode({"type": "heartbeat"}) + b"\x00",
        b"\x82\xa4type\xa7goodbye\xa6reason\xa1\xff",
        b"\x82\xa4type\xa7goodbye\xa6reason\xdb\xff\xff\xff\xff",
    ],
)
def test_what_is_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_message(content)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_lengths_are_bounded(length: int) -> None:
    with pytest.raises(ProtocolError, match="are allowed"):
        decode_length(length.to_bytes(4, "little"))


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match=r"Goodbye message of .* exceeds"):
        encode_message(Goodbye("x" * (MAX_MESSAGE_BYTES + 1)))


def test_a_peers_words_cannot_move_the_cursor() -> None:
    assert one_line("a\x1b[2J\nb\u202e") == "a [2J b "
    assert len(one_line("x" * 10_000)) == 500
