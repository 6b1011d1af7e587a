"""Control links over real TLS on loopback."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tpi.cluster.control.io import ControlSettings
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import MAX_MESSAGE_BYTES, AnyMessage, EndEpoch, EpochEnded, Goodbye, encode_message
from tpi.errors import LinkError, LinkTimeoutError, ProtocolError
from tpi.testing.meshes import TlsPairs

FAST = ControlSettings(heartbeat_s=0.05, silence_limit_s=1.0, linger_s=0.5)
WAIT_S = 20.0


@contextmanager
def control_links(
    pairs: TlsPairs, settings: ControlSettings | None = None
) -> Iterator[tuple[ControlLink, ControlLink]]:
    accepted, called = pairs.connect()
    with ControlLink(accepted, "the device", settings) as master, ControlLink(called, "the master", settings) as device:
        yield master, device


@contextmanager
def link_and_socket(
    pairs: TlsPairs, settings: ControlSettings | None = None
) -> Iterator[tuple[ControlLink, ssl.SSLSocket]]:
    accepted, called = pairs.connect()
    called.settimeout(WAIT_S)
    with ControlLink(accepted, "the device", settings) as link, called:
        yield link, called


def numbered(number: int, length: int = 0) -> Goodbye:
    return Goodbye(f"{number}:" + "x" * length)


def test_messages_arrive_in_order_both_ways(tls_pairs: TlsPairs) -> None:
    with control_links(tls_pairs) as (master, device):
        for number in range(500):
            master.send(numbered(number, number))
            device.send(EpochEnded(number, 0))
        for number in range(500):
            assert device.receive(WAIT_S) == numbered(number, number)
            assert master.receive(WAIT_S) == EpochEnded(number, 0)
        with pytest.raises(LinkTimeoutError):
            device.receive(0)
        assert master.n_bytes_sent >= sum(len(encode_message(numbered(n, n))) for n in range(500))


def test_threads_that_send_at_once_lose_nothing(tls_pairs: TlsPairs) -> None:
    with control_links(tls_pairs) as (master, device):

        def send_all(sender: int) -> None:
            for number in range(200):
                master.wait_send(EndEpoch(sender * 1000 + number, 0), WAIT_S)

        threads = [threading.Thread(target=send_all, args=(sender,)) for sender in range(4)]
        for thread in threads:
            thread.start()
        received = [device.receive(WAIT_S) for _ in range(800)]
        for thread in threads:
            thread.join()
    epochs = [message.epoch for message in received if isinstance(message, EndEpoch)]
    for sender in range(4):
        mine = [epoch for epoch in epochs if epoch // 1000 == sender]
        assert mine == [sender * 1000 + number for number in range(200)]


def test_heartbeats_keep_an_idle_link_alive(tls_pairs: TlsPairs) -> None:
    with control_links(tls_pairs, FAST) as (master, device):
        with pytest.raises(LinkTimeoutError, match=r"the device sent no message for 1\.5 s"):
            master.receive(1.5)
        assert master.lost is None and device.lost is None
        assert 2 <= master.n_bytes_received / len(encode_message(Goodbye(""))) < 100


def test_a_silent_peer_is_lost(tls_pairs: TlsPairs) -> None:
    with link_and_socket(tls_pairs, FAST) as (link, _):
        start_s = time.monotonic()
        with pytest.raises(LinkError, match=r"the device gave no sign of life for 1 s"):
            link.receive(WAIT_S)
        assert 0.9 < time.monotonic() - start_s < 10
        with pytest.raises(LinkError, match="no sign of life"):
            link.send(Goodbye(""))


def test_a_peer_that_trickles_is_not_lost(tls_pairs: TlsPairs) -> None:
    """Any byte is a sign of life: a long message over a slow network must not look like silence."""
    with link_and_socket(tls_pairs, FAST) as (link, sock):
        encoded = encode_message(Goodbye("slowly"))
        for byte in encoded:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)
        assert link.receive(WAIT_S) == Goodbye("slowly")


def test_a_dead_peer_is_lost_at_once_but_its_last_words_count(tls_pairs: TlsPairs) -> None:
    with link_and_socket(tls_pairs) as (link, sock):
        sock.sendall(encode_message(Goodbye("last words")))
        sock.close()
        assert link.receive(WAIT_S) == Goodbye("last words")
        start_s = time.monotonic()
        with pytest.raises(LinkError, match="the device closed the control link"):
            link.receive(WAIT_S)
        assert time.monotonic() - start_s < 3
        with pytest.raises(LinkError, match="the device closed the control link"):
            link.receive(0)


def test_close_sends_what_is_queued(tls_pairs: TlsPairs) -> None:
    with control_links(tls_pairs) as (master, device):
        for number in range(300):
            master.send(numbered(number, 900))
        master.close()
        master.close()
        assert [device.receive(WAIT_S) for _ in range(300)] == [numbered(number, 900) for number in range(300)]
        with pytest.raises(LinkError, match="the master closed"):
            device.receive(WAIT_S)
        with pytest.raises(LinkError, match="closed on this side"):
            master.send(Goodbye(""))
        with pytest.raises(LinkError, match="closed on this side"):
            master.receive(WAIT_S)


def test_close_frees_a_blocked_receiver(tls_pairs: TlsPairs) -> None:
    with control_links(tls_pairs) as (master, _):
        threading.Timer(0.1, master.close).start()
        with pytest.raises(LinkError, match="closed on this side"):
            master.receive(WAIT_S)


def test_a_peer_that_does_not_read_holds_senders_back(tls_pairs: TlsPairs) -> None:
    settings = ControlSettings(max_outbox_bytes=10_000, silence_limit_s=60, linger_s=0.1)
    with link_and_socket(tls_pairs, settings) as (link, _):
        with pytest.raises(LinkTimeoutError, match="the device took no message"):
            for number in range(100_000):
                link.wait_send(numbered(number, 900), 0.3)
        link.send(Goodbye("small ones still go in the queue"))
        with pytest.raises(LinkError, match="does not take its messages"):
            for number in range(100_000):
                link.send(numbered(number, 900))


def test_an_inbox_that_nobody_empties_stays_bounded(tls_pairs: TlsPairs) -> None:
    settings = ControlSettings(heartbeat_s=0.05, silence_limit_s=1.0, max_inbox_bytes=50_000, max_outbox_bytes=50_000)
    with control_links(tls_pairs, settings) as (master, device):
        n_sent = 0
        with pytest.raises(LinkTimeoutError):
            while n_sent < 200_000:
                master.wait_send(numbered(n_sent, 900), 1.5)
                n_sent += 1
        assert device.n_bytes_received < 200_000
        assert master.lost is None and device.lost is None
        for number in range(n_sent):
            assert device.receive(WAIT_S) == numbered(number, 900)


def test_callbacks_run_and_may_answer(tls_pairs: TlsPairs) -> None:
    accepted, called = tls_pairs.connect()
    lost: list[LinkError] = []
    was_lost = threading.Event()
    links: list[ControlLink] = []

    def echo(message: AnyMessage) -> None:
        links[0].send(message)

    def note(error: LinkError) -> None:
        lost.append(error)
        was_lost.set()

    links.append(ControlLink(accepted, "the device", on_message=echo, on_lost=note))
    with links[0], ControlLink(called, "the master") as device:
        device.send(Goodbye("there and back"))
        assert device.receive(WAIT_S) == Goodbye("there and back")
        device.close()
        assert was_lost.wait(WAIT_S)
    assert len(lost) == 1 and "closed the control link" in str(lost[0])


def test_closing_is_not_losing(tls_pairs: TlsPairs) -> None:
    accepted, called = tls_pairs.connect()
    lost: list[LinkError] = []
    with ControlLink(called, "the master"), ControlLink(accepted, "the device", on_lost=lost.append) as link:
        link.close()
    assert lost == []


def test_a_callback_may_close_and_may_refuse(tls_pairs: TlsPairs) -> None:
    accepted, called = tls_pairs.connect()
    lost: list[LinkError] = []
    was_lost = threading.Event()

    def refuse(message: AnyMessage) -> None:
        raise ProtocolError(f"{type(message).__name__} now?")

    def note(error: LinkError) -> None:
        lost.append(error)
        link.close()
        was_lost.set()

    link = ControlLink(accepted, "the device", on_message=refuse, on_lost=note)
    with link, ControlLink(called, "the master") as device:
        device.send(Goodbye(""))
        assert was_lost.wait(WAIT_S)
    assert str(lost[0]) == "the control link to the device was ended: Goodbye now?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x00\x00", "announces 0 bytes"),
        ((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"), "announces 4194305 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "announces"),
        (b"\x01\x00\x00\x00\xc1", "cannot be understood"),
    ],
)
def test_garbage_ends_the_link(tls_pairs: TlsPairs, content: bytes, message: str) -> None:
    with link_and_socket(tls_pairs) as (link, sock):
        sock.sendall(content)
        with pytest.raises(LinkError, match=f"the device was ended: .*{message}"):
            link.receive(WAIT_S)


def test_no_thread_is_left(tls_pairs: TlsPairs) -> None:
    before = threading.active_count()
    with control_links(tls_pairs):
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
