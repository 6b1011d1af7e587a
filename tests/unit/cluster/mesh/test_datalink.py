"""One data link: what it takes and sends without blocking, what it refuses, how it ends."""

import functools
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.unit.cluster.mesh.content import TAG, content_of, sealed
from tpi.cluster.mesh.datalink import DataLink, Exchange, Incoming
from tpi.cluster.mesh.frames import HEADER_BYTES, NO_BLOCK, FrameBuffer, FrameTag, Phase, unpack_header
from tpi.cluster.mesh.polling import READABLE, WRITABLE
from tpi.errors import LinkError, ProtocolError
from tpi.testing.meshes import EPOCH, Connect, TlsPairs, socket_pair

WAIT_S = 20.0


@contextmanager
def link_and_socket(connect: Connect = socket_pair) -> Iterator[tuple[DataLink, socket.socket]]:
    """A link to ``the device``, and the other end to write into."""
    ours, theirs = connect()
    link = DataLink(ours, "the device")
    theirs.settimeout(WAIT_S)
    with theirs:
        yield link, theirs
        link.close()


@pytest.fixture(params=["plain", "TLS"])
def connect(request: pytest.FixtureRequest, tls_pairs: TlsPairs) -> Connect:
    return socket_pair if request.param == "plain" else tls_pairs.connect


class Expected:
    """A frame that is to come, and whether it is still to come."""

    def __init__(self, link: DataLink, tag: FrameTag = TAG, capacity: int = 100) -> None:
        self.incoming, self.exchange = Incoming(FrameBuffer(capacity)), Exchange()
        link.expect(self.incoming, tag.key(EPOCH), self.exchange)

    @property
    def n_left(self) -> int:
        return self.exchange.n_left

    @property
    def content(self) -> bytes:
        return content_of(self.incoming)


def read_until(link: DataLink, is_done: Callable[[], bool]) -> None:
    """Reads whenever bytes are there, as a mesh does."""
    while not is_done():
        assert link.wanted() & READABLE
        assert select.select([link.descriptor], [], [], WAIT_S)[0], "nothing came"
        link.read()


def take(link: DataLink, tag: FrameTag = TAG, capacity: int = 100) -> bytes:
    expected = Expected(link, tag, capacity)
    read_until(link, lambda: expected.n_left == 0)
    return expected.content


def frame(content: bytes, tag: FrameTag = TAG, epoch: int = EPOCH) -> bytes:
    return bytes(sealed(content, tag, epoch).frame)


def _is_over(exchange: Exchange) -> bool:
    return exchange.n_left == 0


def _has_received(link: DataLink, n_bytes: int) -> bool:
    return link.n_bytes_received == n_bytes


def test_a_frame_may_come_in_any_pieces(connect: Connect) -> None:
    content = bytes(range(100))
    with link_and_socket(connect) as (link, sock):
        incoming = Expected(link)
        for n_sent, byte in enumerate(frame(content), start=1):
            assert incoming.n_left == 1
            sock.sendall(bytes([byte]))
            read_until(link, functools.partial(_has_received, link, n_sent))
        assert incoming.content == content
        assert link.n_bytes_received == HEADER_BYTES + 100 and link.wanted() == 0


def test_a_frame_leaves_as_it_was_sealed(connect: Connect) -> None:
    with link_and_socket(connect) as (link, sock):
        exchange = Exchange()
        buffer = sealed(b"content")
        link.send(buffer, exchange)
        assert exchange.n_left == 0 and link.n_bytes_sent == HEADER_BYTES + 7
        assert sock.recv(4096) == bytes(buffer.frame)


def test_what_the_system_does_not_take_waits(connect: Connect) -> None:
    content = bytes(range(256)) * (1 << 14)
    with link_and_socket(connect) as (link, sock):
        exchange, buffer = Exchange(), sealed(content)
        link.send(buffer, exchange)
        link.send(sealed(b"next"), exchange)
        assert exchange.n_left == 2 and link.wanted() == WRITABLE
        received = b""
        while len(received) < 2 * HEADER_BYTES + len(content) + 4:
            received += sock.recv(1 << 16)
            link.write()
        assert exchange.n_left == 0 and link.wanted() == 0
        assert received == bytes(buffer.frame) + frame(b"next")


def test_nothing_is_read_before_it_is_expected(connect: Connect) -> None:
    with link_and_socket(connect) as (link, sock):
        sock.sendall(frame(b"early"))
        assert link.wanted() == 0
        link.read()
        assert link.n_bytes_received == 0
        assert take(link) == b"early"


def test_frames_of_equal_keys_come_in_their_order(connect: Connect) -> None:
    with link_and_socket(connect) as (link, sock):
        waiting = [Expected(link) for _ in range(3)]
        sock.sendall(frame(b"1") + frame(b"2") + frame(b"3"))
        read_until(link, lambda: not any(incoming.n_left for incoming in waiting))
        assert [incoming.content for incoming in waiting] == [b"1", b"2", b"3"]


def test_frames_find_their_places_in_any_order(connect: Connect) -> None:
    other = FrameTag(1, 2, Phase.TOTAL, 1)
    with link_and_socket(connect) as (link, sock):
        total, partial = Expected(link, other), Expected(link, TAG)
        sock.sendall(frame(b"partial", TAG) + frame(b"total", other))
        read_until(link, lambda: not (total.n_left or partial.n_left))
        assert (total.content, partial.content) == (b"total", b"partial")


def test_a_frame_that_nobody_expects_yet_is_taken_later(connect: Connect) -> None:
    ahead = FrameTag(1, 3, Phase.PARTIAL)
    with link_and_socket(connect) as (link, sock):
        now = Expected(link)
        sock.sendall(frame(b"ahead", ahead))
        read_until(link, lambda: not link.wanted())
        assert now.n_left == 1 and link.n_bytes_received == HEADER_BYTES, "only its header was read"
        later = Expected(link, ahead)
        read_until(link, lambda: later.n_left == 0)
        assert later.content == b"ahead"
        sock.sendall(frame(b"now"))
        read_until(link, lambda: now.n_left == 0)
        assert now.content == b"now"


def test_a_frame_with_part_of_a_key_takes_any_pass() -> None:
    key = FrameTag(0, NO_BLOCK, Phase.PASS).key(EPOCH)
    with link_and_socket() as (link, sock):
        incoming = Incoming(FrameBuffer(10), 12)
        for number in (7, 1 << 40):
            sock.sendall(frame(b"pass", FrameTag(number, NO_BLOCK, Phase.PASS)))
            exchange = Exchange()
            link.expect(incoming, key, exchange)
            read_until(link, functools.partial(_is_over, exchange))
            assert unpack_header(incoming.buffer.frame).tag.pass_id == number and content_of(incoming) == b"pass"


@pytest.mark.parametrize(
    ("tag", "epoch", "message"),
    [
        (FrameTag(1, 1, Phase.PARTIAL), EPOCH, r"pass 1 block 1 .* of epoch 1, expected pass 1 block 2 .* of epoch 1"),
        (FrameTag(0, 9, Phase.TOTAL), EPOCH, "the device sent pass 0 block 9 phase TOTAL"),
        (TAG, EPOCH + 1, r"of epoch 2, expected .* of epoch 1"),
        (FrameTag(5, 5, Phase.LOGITS), EPOCH - 1, r"of epoch 0, expected .* of epoch 1"),
    ],
)
def test_a_frame_of_the_past_or_of_another_epoch_is_refused(
    connect: Connect, tag: FrameTag, epoch: int, message: str
) -> None:
    with link_and_socket(connect) as (link, sock):
        incoming = Expected(link)
        sock.sendall(frame(b"x", tag, epoch))
        with pytest.raises(ProtocolError, match=message):
            read_until(link, lambda: False)
        assert incoming.n_left == 1


def test_a_repeated_frame_is_refused() -> None:
    """The same bytes again are of the past as soon as something later is expected."""
    with link_and_socket() as (link, sock):
        sock.sendall(frame(b"once") * 2)
        assert take(link) == b"once"
        with pytest.raises(ProtocolError, match=r"block 2 .* expected pass 1 block 3"):
            take(link, FrameTag(1, 3, Phase.PARTIAL))


def test_a_payload_that_does_not_fit_is_not_read(connect: Connect) -> None:
    with link_and_socket(connect) as (link, sock):
        sock.sendall(frame(b"12345"))
        with pytest.raises(ProtocolError, match=r"the device sent 5 bytes for pass 1 block 2 .*, at most 4 fit"):
            take(link, capacity=4)
        assert link.n_bytes_received == HEADER_BYTES


def test_bytes_that_are_no_frame(connect: Connect) -> None:
    with link_and_socket(connect) as (link, sock):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n")
        with pytest.raises(ProtocolError, match="out of step"):
            take(link)


def test_a_peer_that_closes_is_named_every_time(connect: Connect) -> None:
    with link_and_socket(connect) as (link, sock):
        sock.sendall(frame(b"last words")[:40])
        sock.close()
        for _ in range(2):
            with pytest.raises(LinkError, match="the device closed the data link: its process ended"):
                take(link)


def test_a_reset_is_one_line(tls_pairs: TlsPairs) -> None:
    with link_and_socket(tls_pairs.connect) as (link, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        with pytest.raises(LinkError, match=r"the device closed the data link|to the device broke \(Connection reset"):
            take(link)


def test_bytes_that_are_not_of_the_key_end_the_link(tls_pairs: TlsPairs) -> None:
    with link_and_socket(tls_pairs.connect) as (link, sock):
        socket.socket.send(sock, b"never encrypted, and long enough to be looked at")
        with pytest.raises(LinkError, match=r"the data link to the device broke \([A-Z_]+\)"):
            take(link)


def test_close_is_idempotent_and_final(connect: Connect) -> None:
    with link_and_socket(connect) as (link, sock):
        link.close()
        link.close()
        with pytest.raises(LinkError, match="closed on this side"):
            link.send(sealed(b"never in the clear"), Exchange())
        assert sock.recv(100) == b""


def test_who_is_waited_for() -> None:
    with link_and_socket() as (link, sock):
        incoming, other = Expected(link), Exchange()
        assert link.is_waited_for(incoming.exchange) and not link.is_waited_for(other)
        sock.sendall(frame(b"12345")[:35])
        link.read()
        assert link.is_waited_for(incoming.exchange), "the rest of it is still to come"
        sock.sendall(frame(b"12345")[35:])
        link.read()
        assert not link.is_waited_for(incoming.exchange)
        link.send(sealed(bytes(1 << 22)), other)
        assert link.is_waited_for(other)
