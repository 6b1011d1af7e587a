"""Frames with a content, sent and received by meshes; meshes in threads."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from tpi.cluster.mesh.datalink import Exchange, Incoming
from tpi.cluster.mesh.frames import FrameBuffer, FrameTag, PayloadType, Phase
from tpi.cluster.mesh.mesh import Mesh
from tpi.testing.allreduce_suite import on_all_ranks
from tpi.testing.meshes import EPOCH

Open = Callable[[int], AbstractContextManager[list[Mesh]]]
"""So many meshes, each with a link to every other."""
TAG = FrameTag(1, 2, Phase.PARTIAL)
LIMIT_S = 20.0


def sealed(content: bytes, tag: FrameTag = TAG, epoch: int = EPOCH) -> FrameBuffer:
    buffer = FrameBuffer(len(content))
    buffer.payload[:] = content
    buffer.seal(tag.key(epoch), PayloadType.BYTES, len(content))
    return buffer


def content_of(incoming: Incoming) -> bytes:
    buffer = incoming.buffer
    return bytes(buffer.payload[: buffer.n_payload_bytes])


def give(mesh: Mesh, rank: int, frame: FrameBuffer, exchange: Exchange) -> None:
    """Begins to send; both must live until the frame has left."""
    mesh.send(mesh.targets([rank]), frame, exchange)


def send(mesh: Mesh, rank: int, content: bytes, tag: FrameTag = TAG) -> None:
    """Sends a frame and waits until it has left."""
    frame, exchange = sealed(content, tag, mesh.epoch), Exchange()
    give(mesh, rank, frame, exchange)
    mesh.wait(exchange, LIMIT_S)


def expect(mesh: Mesh, rank: int, exchange: Exchange, tag: FrameTag = TAG, capacity: int = 1 << 20) -> Incoming:
    """What is returned must live until the frame has come."""
    incoming = Incoming(FrameBuffer(capacity))
    mesh.expect(mesh.sources({rank: incoming}), tag.key(mesh.epoch), exchange)
    return incoming


def receive(mesh: Mesh, rank: int, tag: FrameTag = TAG, capacity: int = 1 << 20) -> bytes:
    """Waits for a frame."""
    exchange = Exchange()
    incoming = expect(mesh, rank, exchange, tag, capacity)
    mesh.wait(exchange, LIMIT_S)
    return content_of(incoming)


def on_all(work: Callable[[int], None], n_ranks: int) -> None:
    for error in on_all_ranks(work, n_ranks):
        if error is not None:
            raise error
