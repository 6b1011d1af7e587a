"""Data links over real TLS on loopback."""

import threading
import time

import pytest

from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.frames import FrameBuffer, FrameTag, PayloadType, Phase
from tpi.errors import LinkError, ProtocolError
from tpi.testing.links import TlsPairs

TAG = FrameTag(1, 2, Phase.PARTIAL)


def send(link: DataLink, payload: bytes, tag: FrameTag = TAG) -> None:
    buffer = FrameBuffer(len(payload))
    buffer.payload[:] = payload
    link.send(tag, PayloadType.BYTES, buffer, len(payload))


def receive(link: DataLink, capacity: int = 1 << 20, tag: FrameTag = TAG) -> bytes:
    header = link.expect_header(tag)
    buffer = FrameBuffer(capacity)
    link.receive_payload(header, buffer)
    return bytes(buffer.payload[: header.n_payload_bytes])


@pytest.mark.parametrize("size", [0, 1, 4096, 16352, 16353, 1_000_000])
def test_frames_arrive_as_they_were_sent(tls_pairs: TlsPairs, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with tls_pairs.data_links() as (master, device):
        threading.Thread(target=send, args=(device, payload)).start()
        assert receive(master) == payload
        send(master, payload[:100])
        send(master, payload[:7])
        assert receive(device) == payload[:100]
        assert receive(device) == payload[:7]
        assert master.n_bytes_sent == device.n_bytes_received == len(payload[:100]) + len(payload[:7]) + 64


def test_another_tag_is_named_with_the_expected_one(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master, device):
        send(device, b"x", FrameTag(1, 2, Phase.LOGITS))
        with pytest.raises(ProtocolError, match=r"the device sent pass 1 block 2 phase LOGITS, expected .* PARTIAL"):
            master.expect_header(TAG)


def test_another_epoch_is_refused(tls_pairs: TlsPairs) -> None:
    accepted, called = tls_pairs.connect()
    with DataLink(accepted, "a", epoch=1) as master, DataLink(called, "b", epoch=2) as device:
        send(device, b"")
        with pytest.raises(ProtocolError, match=r"epoch 2 .*expected epoch 1"):
            master.receive_header()


def test_a_repeated_frame_is_refused(tls_pairs: TlsPairs) -> None:
    """The same bytes again have a sequence number of the past."""
    accepted, called = tls_pairs.connect()
    with DataLink(accepted, "a", epoch=1) as master, called:
        with DataLink(tls_pairs.connect()[0], "unused", epoch=1) as recorder:
            buffer = FrameBuffer(1)
            recorder.send(TAG, PayloadType.BYTES, buffer, 1)
        called.sendall(buffer.frame)
        called.sendall(buffer.frame)
        assert receive(master) == b"\x00"
        with pytest.raises(ProtocolError, match=r"frame 0, expected epoch 1 frame 1"):
            master.receive_header()


def test_a_payload_of_unexpected_length_is_not_read(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master, device):
        send(device, b"12345")
        header = master.expect_header(TAG)
        with pytest.raises(ProtocolError, match=r"sent 5 bytes .* expected 4"):
            master.receive_payload(header, FrameBuffer(100), 4)
        with pytest.raises(ProtocolError, match="at most 3"):
            master.receive_payload(header, FrameBuffer(3))
        assert master.n_bytes_received == 32


def test_shut_down_from_another_thread_ends_a_blocked_receive(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master, device):
        threading.Timer(0.1, master.shut_down).start()
        with pytest.raises(LinkError, match="shut down on this side"):
            master.receive_header()
        with pytest.raises(LinkError, match="shut down on this side"):
            send(master, b"never in the clear")
        with pytest.raises(LinkError, match="the master closed the data link"):
            device.receive_header()


def test_shut_down_from_another_thread_ends_a_blocked_send(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master, _):
        threading.Timer(0.2, master.shut_down).start()
        with pytest.raises(LinkError, match="shut down on this side"):
            for _ in range(64):
                send(master, bytes(1 << 20))


def test_a_silent_peer_is_named_after_the_timeout(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links(timeout_s=0.1) as (master, device):
        with pytest.raises(LinkError, match=r"the device did not send data for 0\.1 s"):
            master.receive_header()
        send(device, b"too late")
        with pytest.raises(LinkError, match="did not send data"):
            master.receive_header()


def test_close_ends_the_peer_and_is_idempotent(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master, device):
        master.close()
        master.close()
        with pytest.raises(LinkError, match="the master closed the data link"):
            device.receive_header()


def test_wait_readable(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master, device):
        assert not master.wait_readable(0.05)
        send(device, b"a")
        send(device, b"b")
        assert master.wait_readable(5)
        assert receive(master) == b"a"
        assert master.wait_readable(5)
        assert receive(master) == b"b"
        threading.Timer(0.1, master.shut_down).start()
        start_s = time.monotonic()
        assert master.wait_readable(None)
        assert time.monotonic() - start_s < 10
        assert master.wait_readable(None)


def test_bytes_that_are_no_frame(tls_pairs: TlsPairs) -> None:
    accepted, called = tls_pairs.connect()
    with DataLink(accepted, "a", epoch=1) as master, called:
        called.sendall(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n")
        with pytest.raises(ProtocolError, match="out of step"):
            master.receive_header()
