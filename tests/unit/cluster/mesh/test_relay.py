"""Relays: what comes from one of two connections goes to the other, through real TLS, in bounded memory."""

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from tests.unit.cluster.mesh.content import TAG, content_of, sealed
from tpi.cluster.mesh.datalink import DataLink, Exchange, Incoming
from tpi.cluster.mesh.frames import FrameBuffer
from tpi.cluster.mesh.polling import READABLE, WRITABLE, SelectPoll
from tpi.cluster.mesh.relay import MAX_BUFFERED_BYTES, Relays
from tpi.errors import LinkError
from tpi.testing.allreduce_suite import on_all_ranks
from tpi.testing.meshes import EPOCH, TlsPairs

WAIT_S = 20.0


@pytest.fixture(params=["poll", "select"])
def relays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relays]:
    if request.param == "select":
        monkeypatch.setattr("tpi.cluster.mesh.relay.make_poll", SelectPoll)
    with Relays() as relays:
        yield relays


def pair(relays: Relays, pairs: TlsPairs, stack: ExitStack) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """The devices' ends of two connections that are joined."""
    masters, devices = zip(*(pairs.connect() for _ in range(2)), strict=True)
    for sock in devices:
        sock.settimeout(WAIT_S)
        stack.enter_context(sock)
    relays.join(*masters)
    return devices[0], devices[1]


def receive(sock: ssl.SSLSocket, n_bytes: int) -> bytes:
    content = bytearray(n_bytes)
    place = memoryview(content)
    while place:
        n_received = sock.recv_into(place)
        assert n_received, "it ended early"
        place = place[n_received:]
    return bytes(content)


def test_bytes_go_both_ways(relays: Relays, tls_pairs: TlsPairs) -> None:
    with ExitStack() as stack:
        one, other = pair(relays, tls_pairs, stack)
        for number in range(20):
            one.sendall(b"there %d" % number)
            assert receive(other, len(b"there %d" % number)) == b"there %d" % number
            other.sendall(b"back")
            assert receive(one, 4) == b"back"


def test_what_was_sent_before_they_were_joined_arrives(tls_pairs: TlsPairs) -> None:
    with Relays() as relays, ExitStack() as stack:
        (accepted, early), (other, late) = tls_pairs.connect(), tls_pairs.connect()
        for sock in (early, late):
            stack.enter_context(sock)
            sock.settimeout(WAIT_S)
        early.sendall(b"1early")
        assert accepted.recv(1) == b"1" and accepted.pending() == 5, "the rest lies inside TLS"
        relays.join(accepted, other)
        assert receive(late, 5) == b"early"


@pytest.mark.parametrize("closing", [0, 1])
def test_one_side_that_closes_ends_the_other(relays: Relays, tls_pairs: TlsPairs, closing: int) -> None:
    with ExitStack() as stack:
        ends = pair(relays, tls_pairs, stack)
        unconcerned = pair(relays, tls_pairs, stack)
        ends[closing].sendall(b"last words")
        assert receive(ends[1 - closing], 10) == b"last words"
        ends[closing].close()
        assert ends[1 - closing].recv(1) == b""
        unconcerned[0].sendall(b"still here")
        assert receive(unconcerned[1], 10) == b"still here"
        deadline_s = time.monotonic() + WAIT_S
        while len(relays._ends) > 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)


def swap(ends: tuple[ssl.SSLSocket, ssl.SSLSocket], contents: list[bytes]) -> None:
    """Both send and receive at the same time."""

    def work(number: int) -> None:
        link, exchange = DataLink(ends[number], f"end {1 - number}"), Exchange()
        incoming = Incoming(FrameBuffer(len(contents[1 - number])))
        link.send(sealed(contents[number]), exchange)
        link.expect(incoming, TAG.key(EPOCH), exchange)
        while exchange.n_left:
            wanted = link.wanted()
            reads, writes = [[link.descriptor] if wanted & event else [] for event in (READABLE, WRITABLE)]
            found = select.select(reads, writes, [], WAIT_S)
            assert found[0] or found[1], "nothing moves"
            link.move((READABLE if found[0] else 0) | (WRITABLE if found[1] else 0), False)
        assert content_of(incoming) == contents[1 - number]

    for error in on_all_ranks(work, 2):
        if error is not None:
            raise error


def test_large_transfers_both_ways_at_once_of_several_pairs(relays: Relays, tls_pairs: TlsPairs) -> None:
    contents = [np.random.default_rng(number).bytes(8_000_000 + number) for number in range(2)]
    with ExitStack() as stack:
        all_ends = [pair(relays, tls_pairs, stack) for _ in range(2)]
        raised = on_all_ranks(lambda number: swap(all_ends[number], contents), 2)
        assert raised == [None, None]


def test_who_does_not_read_holds_the_sender_back(relays: Relays, tls_pairs: TlsPairs) -> None:
    content = bytes(range(256)) * (1 << 16)
    with ExitStack() as stack:
        one, other = pair(relays, tls_pairs, stack)
        thread = threading.Thread(target=one.sendall, args=(content,))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive(), "the system's buffers do not hold so much"
        waiting = [len(end.waiting) for end in relays._ends.values()]
        assert MAX_BUFFERED_BYTES <= max(waiting) <= MAX_BUFFERED_BYTES + (16 << 10) and min(waiting) == 0
        assert receive(other, len(content)) == content
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_sender_that_is_gone_while_nobody_reads_costs_no_time(relays: Relays, tls_pairs: TlsPairs) -> None:
    with ExitStack() as stack:
        one, other = pair(relays, tls_pairs, stack)
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.sendall(bytes(1 << 24))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.25, "the relay's thread turns round and round"
        with pytest.raises((OSError, AssertionError)):
            receive(other, 1 << 24)


def test_a_device_that_speaks_no_tls_ends_its_own_pair(relays: Relays, tls_pairs: TlsPairs) -> None:
    with ExitStack() as stack:
        one, other = pair(relays, tls_pairs, stack)
        unconcerned = pair(relays, tls_pairs, stack)
        socket.socket.send(one, b"never encrypted, and long enough to be looked at")
        assert other.recv(1) == b""
        unconcerned[0].sendall(b"still here")
        assert receive(unconcerned[1], 10) == b"still here"


def test_closing_ends_all_pairs_and_the_thread(tls_pairs: TlsPairs) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        relays = Relays()
        pairs = [pair(relays, tls_pairs, stack) for _ in range(3)]
        assert threading.active_count() == before + 1, "one thread carries all"
        relays.close()
        relays.close()
        assert threading.active_count() == before
        for ends in pairs:
            assert [sock.recv(1) for sock in ends] == [b"", b""]


def test_relays_of_nobody_have_no_thread() -> None:
    before = threading.active_count()
    with Relays() as relays:
        assert threading.active_count() == before
    relays.close()


def test_a_link_over_a_relay_names_the_device_behind_it(relays: Relays, tls_pairs: TlsPairs) -> None:
    with ExitStack() as stack:
        one, other = pair(relays, tls_pairs, stack)
        link, incoming = DataLink(one, "the attic"), Incoming(FrameBuffer(10))
        link.expect(incoming, TAG.key(EPOCH), Exchange())
        other.close()
        assert select.select([link.descriptor], [], [], WAIT_S)[0]
        with pytest.raises(LinkError, match="the attic closed the data link"):
            link.read()
