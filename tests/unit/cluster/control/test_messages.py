"""Control messages: golden bytes, bounds, and that no bytes crash the reader."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.control.messages import (
    MAX_MESSAGE_BYTES,
    AnyMessage,
    EpochEnded,
    Goodbye,
    Heartbeat,
    LinkFailure,
    LinksOpened,
    Measure,
    Measured,
    Offer,
    OpenLinks,
    Peer,
    Remarked,
    SumTrial,
    decode_length,
    decode_message,
    encode_message,
    one_line,
)
from tpi.errors import ProtocolError

TRIAL = {"algorithm": "star", "payload": "f16", "n_tokens": 1, "n_rounds": 3}
PEER = Peer(3, "attic", "2a", ("10.0.0.5", "::1"), 7600, b"fedcba9876543210")


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (Heartbeat(), b"\x10\x00\x00\x00\x81\xa4type\xa9heartbeat"),
        (Goodbye("bye"), b"\x19\x00\x00\x00\x82\xa4type\xa7goodbye\xa6reason\xa3bye"),
        (Remarked("full"), b"\x19\x00\x00\x00\x82\xa4type\xa8remarked\xa4text\xa4full"),
        (
            OpenLinks(7, b"0123456789abcdef", expect=(PEER,)),
            b"\x96\x00\x00\x00\x86\xa4type\xaaopen_links\xa5epoch\x07\xa6master\xc4\x100123456789abcdef"
            b"\xa4call\x90\xa6expect\x91\x86\xa4rank\x03\xa4name\xa5attic\xa6serial\xa22a\xa5hosts\x92\xa810.0.0.5\xa3::1"
            b"\xa4port\xcd\x1d\xb0\xa5token\xc4\x10fedcba9876543210\xa5relay\x90",
        ),
        (
            LinksOpened(7, (LinkFailure(2, "no route"),)),
            b"\x3b\x00\x00\x00\x83\xa4type\xaclinks_opened\xa5epoch\x07"
            b"\xa8failures\x91\x82\xa4rank\x02\xa6reason\xa8no route",
        ),
    ],
)
def test_golden_bytes(message: AnyMessage, golden: bytes) -> None:
    assert encode_message(message) == golden
    assert decode_length(golden[:4]) == len(golden) - 4
    assert decode_message(golden[4:]) == message


epochs = st.integers(0, 2**32 - 1)
tokens = st.binary(min_size=16, max_size=16)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
hosts = st.lists(st.sampled_from(["10.0.0.5", "fe80::1%eth0", "attic.local"]), max_size=8).map(tuple)
peers = st.builds(
    Peer,
    st.integers(0, 1023),
    names,
    st.from_regex("[0-9a-f]{1,64}", fullmatch=True),
    hosts,
    st.integers(0, 65535),
    tokens,
)
failures = st.builds(LinkFailure, st.integers(0, 1023), st.text(max_size=1000))
latencies = st.lists(st.floats(0, 1e3), max_size=5).map(tuple)


@given(
    st.one_of(
        st.builds(Goodbye, st.text(max_size=1000)),
        st.builds(Remarked, st.text(max_size=1000)),
        st.builds(OpenLinks, epochs, st.none() | tokens, st.lists(peers, max_size=3).map(tuple)),
        st.builds(LinksOpened, epochs, st.lists(failures, max_size=3).map(tuple)),
        st.builds(Measured, epochs, latencies, st.integers(0, 1 << 40), st.floats(0, 1e3), latencies, latencies),
        st.builds(EpochEnded, epochs, st.integers(0, 1 << 40)),
    )
)
def test_every_message_comes_back(message: AnyMessage) -> None:
    assert decode_message(encode_message(message)[4:]) == message


@given(st.floats(0, 1e17), st.floats(0, 1e17))
def test_an_offer_with_and_without_rates(flop_per_s: float, disk_bytes_per_s: float) -> None:
    offer = Offer(1 << 30, [], flop_per_s=flop_per_s, disk_bytes_per_s=disk_bytes_per_s)
    assert decode_message(encode_message(offer)[4:]) == offer
    plain = msgspec.msgpack.encode({"type": "offer", "memory_bytes": 1, "held": []})
    assert decode_message(plain) == Offer(1, [], (), 0, None, None, 0.0, 0.0)


def test_what_is_refused_is_near_what_is_not() -> None:
    """The bounds of the messages that are refused below are those of messages that are read."""
    peer = msgspec.to_builtins(PEER, builtin_types=[bytes])
    links = {"type": "open_links", "epoch": 1, "master": None, "call": [peer | {"hosts": ["x"] * 8}]}
    assert isinstance(decode_message(msgspec.msgpack.encode(links)), OpenLinks)
    trials = {"type": "measure", "epoch": 1, "trials": [TRIAL | {"n_rounds": 1000}] * 64}
    assert decode_message(msgspec.msgpack.encode(trials)) == Measure(1, (SumTrial("star", "f16", 1, 1000),) * 64)


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
        msgspec.msgpack.encode({"type": "open_links", "epoch": -1, "master": bytes(16)}),
        msgspec.msgpack.encode({"type": "open_links", "epoch": 1 << 32, "master": bytes(16)}),
        msgspec.msgpack.encode({"type": "open_links", "epoch": 1, "master": bytes(15)}),
        *(
            msgspec.msgpack.encode(
                {
                    "type": "open_links",
                    "epoch": 1,
                    "master": None,
                    "call": [msgspec.to_builtins(PEER, builtin_types=[bytes]) | change],
                }
            )
            for change in (
                {"rank": -1},
                {"rank": 1024},
                {"name": "a b"},
                {"name": ""},
                {"serial": "2A"},
                {"serial": "-2a"},
                {"serial": "2a" * 33},
                {"hosts": ["a b"]},
                {"hosts": ["\x1b[2J"]},
                {"hosts": ["x"] * 9},
                {"port": 65536},
                {"token": bytes(17)},
            )
        ),
        msgspec.msgpack.encode({"type": "measure", "epoch": 1, "trials": [TRIAL] * 65}),
        msgspec.msgpack.encode({"type": "measure", "epoch": 1, "trials": [TRIAL | {"n_rounds": 1001}]}),
        msgspec.msgpack.encode({"type": "measure", "epoch": 1, "trials": [TRIAL | {"n_tokens": 0}]}),
        msgspec.msgpack.encode({"type": "measure", "epoch": 1, "trials": [TRIAL | {"algorithm": "x" * 33}]}),
        msgspec.msgpack.encode({"type": "revoked", "serial": "0x2a"}),
        msgspec.msgpack.encode({"type": "links_opened", "epoch": 1, "failures": [{"rank": 1, "reason": "x" * 1001}]}),
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
