"""Meshes between threads, in Python and in C: frames both ways at once, ends that free whoever waits."""

import os
import select
import ssl
import threading
import time

import pytest

from tests.unit.cluster.mesh.content import LIMIT_S, TAG, Open, content_of, expect, give, on_all, receive, sealed, send
from tpi.cluster.mesh.datalink import DataLink, Exchange, Incoming
from tpi.cluster.mesh.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameBuffer,
    FrameTag,
    PayloadType,
    Phase,
)
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.nativemesh import NativeMesh, open_mesh
from tpi.errors import LinkError, LinkTimeoutError
from tpi.native.exchange import load_helper
from tpi.testing.meshes import EPOCH, TlsPairs, open_meshes
from tpi.trace import Kind, Trace, unpack_events

SIZES = [0, 1, 4096, 16352, 16353, 1_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_frames_arrive_as_they_were_sent(opened: Open, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with opened(2) as (master, worker):

        def work(rank: int) -> None:
            if rank == 0:
                assert receive(master, 1) == content
                send(master, 1, content[:100])
                send(master, 1, content[:7])
            else:
                send(worker, 0, content)
                assert receive(worker, 0) == content[:100]
                assert receive(worker, 0) == content[:7]

        on_all(work, 2)
        n_answered, n_asked = len(content[:100]) + len(content[:7]) + 2 * HEADER_BYTES, size + HEADER_BYTES
        assert (master.counts(), worker.counts()) == ((n_answered, n_asked), (n_asked, n_answered))
    assert master.counts() == (n_answered, n_asked), "figures outlive the links"


def test_both_directions_at_once(opened: Open) -> None:
    """More than the system takes, from both sides: neither waits for the other to read first."""
    contents = [bytes([rank]) * 6_000_000 for rank in (0, 1)]
    with opened(2) as meshes:

        def work(rank: int) -> None:
            for _ in range(3):
                exchange, frame = Exchange(), sealed(contents[rank])
                give(meshes[rank], 1 - rank, frame, exchange)
                incoming = expect(meshes[rank], 1 - rank, exchange, capacity=6_000_000)
                meshes[rank].wait(exchange, LIMIT_S)
                assert content_of(incoming) == contents[1 - rank]

        on_all(work, 2)


def test_one_frame_for_several_and_one_from_each(opened: Open) -> None:
    with opened(4) as meshes:

        def work(rank: int) -> None:
            mesh, exchange, frame = meshes[rank], Exchange(), sealed(b"from %d" % rank)
            incoming = {other: Incoming(FrameBuffer(10)) for other in mesh.peers}
            targets, sources = mesh.targets(mesh.peers), mesh.sources(incoming)
            for _ in range(50):
                mesh.expect(sources, TAG.key(EPOCH), exchange)
                mesh.send(targets, frame, exchange)
                assert exchange.n_left <= 6
                mesh.wait(exchange, LIMIT_S)
                assert [content_of(one) for one in incoming.values()] == [b"from %d" % other for other in mesh.peers]

        on_all(work, 4)


def test_what_comes_out_of_order_is_matched(opened: Open) -> None:
    phases = Phase.PARTIAL, Phase.TOTAL
    tags = [FrameTag(1, block, phase, part) for block in (2, 3) for phase in phases for part in (0, 1)]
    with opened(2) as (master, worker):
        exchange = Exchange()
        incoming = {tag: expect(master, 1, exchange, tag) for tag in tags}
        for tag in reversed(tags):
            send(worker, 0, str(tag).encode(), tag)
        master.wait(exchange, LIMIT_S)
        assert {tag: content_of(one) for tag, one in incoming.items()} == {tag: str(tag).encode() for tag in tags}


def test_a_frame_that_nobody_expects_yet_waits(opened: Open) -> None:
    later = FrameTag(2, 0, Phase.PARTIAL)
    with opened(2) as (master, worker):
        send(worker, 0, b"later", later)
        send(worker, 0, b"now")
        exchange = Exchange()
        now = expect(master, 1, exchange)
        with pytest.raises(LinkTimeoutError, match=r"rank 1 did not answer within 0\.02 s"):
            master.wait(exchange, 0.02)
        assert receive(master, 1, later) == b"later"
        master.wait(exchange, LIMIT_S)
        assert content_of(now) == b"now"


@pytest.mark.parametrize("with_helper", [True, False], ids=["C", "python"])
def test_what_tls_has_decrypted_needs_no_news_from_the_system(tls_pairs: TlsPairs, with_helper: bool) -> None:
    """Three frames in one record: the others are expected when the system has nothing more to tell."""
    accepted, called = tls_pairs.connect()
    with open_mesh(0, {1: DataLink(accepted, "rank 1")}, EPOCH, None, with_helper) as master, called:
        tags = [FrameTag(1, block, Phase.PARTIAL) for block in range(3)]
        called.sendall(b"".join(bytes(sealed(str(tag).encode(), tag).frame) for tag in tags))
        assert receive(master, 1, tags[0]) == str(tags[0]).encode()
        assert isinstance(accepted, ssl.SSLSocket) and accepted.pending()
        assert not select.select([accepted.fileno()], [], [], 0)[0]
        assert receive(master, 1, tags[1]) == str(tags[1]).encode()
        assert accepted.pending()
        assert receive(master, 1, tags[2]) == str(tags[2]).encode()
        assert not accepted.pending()


def test_a_peer_that_closes_ends_the_wait(opened: Open) -> None:
    with opened(2) as (master, worker):
        threading.Timer(0.05, worker.close).start()
        for _ in range(2):
            with pytest.raises(LinkError, match="rank 1 closed the data link"):
                receive(master, 1)


def test_any_peer_that_is_lost_ends_the_wait(opened: Open) -> None:
    with opened(3) as meshes:
        exchange = Exchange()
        incoming = [expect(meshes[0], rank, exchange) for rank in (1, 2)]
        threading.Timer(0.05, meshes[2].close).start()
        with pytest.raises(LinkError, match="rank 2 closed the data link"):
            meshes[0].wait(exchange, LIMIT_S)
        assert len(incoming) == 2


def test_a_peer_that_is_gone_takes_no_frames(opened: Open) -> None:
    with opened(2) as (master, worker):
        worker.close()
        frame, exchange = sealed(bytes(1 << 20)), Exchange()
        with pytest.raises(LinkError, match=r"rank 1 closed the data link|the data link to rank 1 broke \("):
            for _ in range(20):
                give(master, 1, frame, exchange)
                master.wait(exchange, LIMIT_S)


@pytest.mark.parametrize("limit_s", [None, LIMIT_S])
def test_shut_down_from_another_thread_ends_a_wait(opened: Open, limit_s: float | None) -> None:
    with opened(2) as (master, worker):
        exchange = Exchange()
        incoming = expect(master, 1, exchange)
        threading.Timer(0.05, lambda: master.shut_down(LinkError("that is enough"))).start()
        started = time.monotonic()
        with pytest.raises(LinkError, match="that is enough"):
            master.wait(exchange, limit_s)
        assert time.monotonic() - started < 10
        master.shut_down(LinkError("too late"))
        with pytest.raises(LinkError, match="that is enough"):
            master.wait(exchange)
        with pytest.raises(LinkError, match="that is enough"):
            master.sleep(0)
        assert (worker.peers, worker.name_of(0), incoming.buffer.capacity_bytes) == ((0,), "rank 0", 1 << 20)


def test_shut_down_ends_a_wait_for_what_is_to_leave(opened: Open) -> None:
    with opened(2) as (master, _):
        frame, exchange = sealed(bytes(MAX_PAYLOAD_BYTES)), Exchange()
        give(master, 1, frame, exchange)
        threading.Timer(0.05, lambda: master.shut_down(LinkError("that is enough"))).start()
        with pytest.raises(LinkError, match="that is enough"):
            master.wait(exchange, LIMIT_S)


def test_wake_ends_one_sleep_and_no_wait(opened: Open) -> None:
    with opened(2) as (master, _):
        threading.Timer(0.05, master.wake).start()
        started = time.monotonic()
        master.arm()
        master.sleep(LIMIT_S)
        master.move()
        assert time.monotonic() - started < 10
        for _ in range(100_000):
            master.wake()  # never blocks
        exchange = Exchange()
        incoming = expect(master, 1, exchange)
        with pytest.raises(LinkTimeoutError):
            master.wait(exchange, 0.05)
        assert incoming.buffer.n_payload_bytes == 0
    master.wake()


def test_one_thread_sleeps_while_another_uses_the_links(opened: Open) -> None:
    """As where a thread of its own carries large sums through (``allreduce.driver``)."""
    with opened(2) as (master, worker):
        lock, got = threading.Lock(), threading.Semaphore(0)
        n_frames = 200

        def carry() -> None:
            for _ in range(n_frames):
                while exchange.n_left or not begun.is_set():
                    with lock:
                        master.arm()
                    master.sleep(LIMIT_S)
                    with lock:
                        master.move()
                begun.clear()
                got.release()

        exchange, begun, incoming = Exchange(), threading.Event(), Incoming(FrameBuffer(1 << 17))
        sources = master.sources({1: incoming})
        thread = threading.Thread(target=carry, daemon=True)
        thread.start()
        content = bytes(1 << 17)
        for number in range(n_frames):
            tag = FrameTag(number, 0, Phase.PARTIAL)
            with lock:
                master.expect(sources, tag.key(EPOCH), exchange)
                begun.set()
            master.wake()
            send(worker, 0, content[: number * 600], tag)
            assert got.acquire(timeout=LIMIT_S)
            assert incoming.buffer.n_payload_bytes == number * 600
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def test_a_limit_names_all_that_are_awaited(opened: Open) -> None:
    with opened(4) as meshes:
        exchange = Exchange()
        incoming = [expect(meshes[0], rank, exchange) for rank in (3, 1, 2)]
        send(meshes[2], 0, b"x")
        with pytest.raises(LinkTimeoutError, match=r"^rank 1, rank 3 did not answer within 0\.05 s$"):
            meshes[0].wait(exchange, 0.05)
        assert content_of(incoming[2]) == b"x"


def test_closing_twice_and_using_afterwards(opened: Open) -> None:
    with opened(2) as (master, _):
        master.close()
        master.close()
        with pytest.raises(LinkError, match="closed on this side"):
            receive(master, 1)
        with pytest.raises(LinkError, match="closed on this side"):
            send(master, 1, b"never in the clear")


def test_no_descriptor_is_left(opened: Open) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with opened(3):
        assert len(os.listdir("/proc/self/fd")) > before
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_mesh_in_c_is_used_where_it_can_be(tls_pairs: TlsPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(with_helper: bool) -> type[Mesh]:
        with open_meshes(2, tls_pairs.connect, with_helper=with_helper) as meshes:
            return type(meshes[0])

    assert kind(False) is Mesh
    if load_helper() is not None:
        assert kind(True) is NativeMesh
    monkeypatch.setattr("tpi.cluster.mesh.nativemesh.load_helper", lambda cache: None)
    assert kind(True) is Mesh


@pytest.mark.parametrize("with_helper", [True, False], ids=["C", "python"])
def test_frames_are_logged(with_helper: bool) -> None:
    trace = Trace()
    with open_meshes(2, with_helper=with_helper) as (first, second):
        for mesh in (first, second):
            mesh.log_to(trace)
        outgoing, incoming, sent, came = FrameBuffer(100), FrameBuffer(100), Exchange(), Exchange()
        tag = FrameTag(9, 4, Phase.TOTAL, 1)
        outgoing.seal(tag.key(first.epoch), PayloadType.BYTES, 77)
        began = time.monotonic()
        first.send(first.targets([1]), outgoing, sent)
        second.expect(second.sources({0: Incoming(incoming)}), tag.key(first.epoch), came)
        first.wait(sent)
        second.wait(came)
        first.tell_log()
        second.tell_log()
    events = unpack_events(trace.take(10)[0])
    assert events["kind"].tolist() == [Kind.SEND, Kind.RECEIVE]
    assert events["peer"].tolist() == [1, 0]
    for event in events:
        fields = [int(event[name]) for name in ("pass_id", "block", "part", "n_bytes", "phase")]
        assert fields == [9, 4, 1, 77, Phase.TOTAL]
        assert began <= event["begin"] <= event["end"] <= time.monotonic()
