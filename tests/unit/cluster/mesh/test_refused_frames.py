"""What a peer may not send: stale, strange, too large, too much."""

import pytest

from tests.unit.cluster.mesh.content import LIMIT_S, TAG, Open, expect, give, receive, sealed, send
from tpi.cluster.mesh.datalink import DataLink, Exchange, Incoming
from tpi.cluster.mesh.frames import (
    KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameBuffer,
    FrameTag,
    Phase,
)
from tpi.cluster.mesh.nativemesh import open_mesh
from tpi.errors import ProtocolError
from tpi.native.exchange import load_helper
from tpi.testing.meshes import EPOCH, TlsPairs, open_meshes


@pytest.mark.parametrize("tag", [FrameTag(1, 1, Phase.PARTIAL), FrameTag(0, 5, Phase.TOTAL)])
def test_a_frame_of_the_past_is_refused(opened: Open, tag: FrameTag) -> None:
    with opened(2) as (master, worker):
        send(worker, 0, b"x", tag)
        with pytest.raises(ProtocolError, match=f"rank 1 sent {tag} of epoch 1, expected {TAG} of epoch 1"):
            receive(master, 1)


def test_a_frame_of_another_epoch_is_refused(opened: Open) -> None:
    with opened(2) as (master, worker):
        frame, exchange = sealed(b"x", epoch=EPOCH + 1), Exchange()
        give(worker, 0, frame, exchange)
        with pytest.raises(ProtocolError, match="of epoch 2, expected"):
            receive(master, 1)


def test_too_large_a_frame_is_refused(opened: Open) -> None:
    with opened(2) as (master, worker):
        send(worker, 0, bytes(101))
        with pytest.raises(ProtocolError, match=r"rank 1 sent 101 bytes for pass 1 block 2 .*, at most 100 fit"):
            receive(master, 1, capacity=100)


def test_bytes_that_are_no_frame_are_refused(tls_pairs: TlsPairs) -> None:
    for with_helper in (True, False):
        accepted, called = tls_pairs.connect()
        with open_mesh(0, {1: DataLink(accepted, "rank 1")}, EPOCH, None, with_helper) as master, called:
            called.sendall(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n")
            with pytest.raises(ProtocolError, match="out of step"):
                receive(master, 1)


@pytest.mark.parametrize(
    ("offset", "content", "said"),
    [
        (4, b"\x03", r"a frame has version 3\.0, this device speaks 2\.0"),
        (5, b"\x06", "a frame has an unknown kind: 6 is not a valid Phase"),
        (5, b"\x00", "a frame has an unknown kind: 0 is not a valid Phase"),
        (7, b"\x01", r"a frame has version 2\.1"),
        (24, (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "little"), "a frame announces 67108865 bytes, at most 67108864"),
        (28, b"\x06", "a frame has an unknown kind: 6 is not a valid PayloadType"),
        (31, b"\x01", r"a frame has version 2\.0"),
    ],
)
def test_a_header_that_is_none_is_refused(opened: Open, offset: int, content: bytes, said: str) -> None:
    """Whether its key is the expected one, or only its beginning is known, or it is not expected at all."""
    for key_bytes, tag in ((KEY_BYTES, TAG), (12, TAG), (5, TAG), (KEY_BYTES, FrameTag(9, 9, Phase.PARTIAL))):
        with opened(2) as (master, worker):
            frame, exchange = sealed(b"x", tag), Exchange()
            frame.frame[offset : offset + len(content)] = content
            worker._links[0].socket.setblocking(True)
            worker._links[0].socket.sendall(frame.frame)
            incoming = Incoming(FrameBuffer(100), key_bytes)
            with pytest.raises(ProtocolError, match=said):
                master.expect(master.sources({1: incoming}), TAG.key(EPOCH), exchange)
                master.wait(exchange, LIMIT_S)


def test_more_frames_than_there_is_room_for_are_refused_in_c() -> None:
    if load_helper() is None:
        pytest.skip("there is no helper in C")
    with open_meshes(2) as (master, _):
        exchange = Exchange()
        with pytest.raises(ProtocolError, match="65 frames are under way with rank 1, at most 64 can be"):
            kept = [expect(master, 1, exchange, capacity=8) for _ in range(65)]
            assert not kept
