"""Large frames between everybody at once, through little memory."""

import socket
import ssl
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from tests.unit.cluster.mesh.content import TAG, on_all
from tpi.cluster.mesh.datalink import Exchange, Incoming
from tpi.cluster.mesh.frames import (
    MAX_PAYLOAD_BYTES,
    FrameBuffer,
    PayloadType,
)
from tpi.cluster.mesh.mesh import Mesh
from tpi.testing.meshes import Connect, TlsPairs, open_meshes


def with_little_memory(pairs: TlsPairs) -> Connect:
    """TLS over the system's own pairs of sockets, with memory for 4 kB in each direction. Over TCP, whose segments are
    as large as 64 kB on this way, so little memory would mean waiting for timers."""

    def connect() -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair()
        for sock in ends:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, 4096)
        accepted: list[ssl.SSLSocket] = []

        def accept() -> None:
            accepted.append(pairs._server_context.wrap_socket(ends[0], server_side=True))

        thread = threading.Thread(target=accept)
        thread.start()
        called = pairs._client_context.wrap_socket(ends[1])
        thread.join()
        return accepted[0], called

    return connect


def exchange_all(meshes: Sequence[Mesh], n_bytes: int, paused: int | None = None) -> None:
    """Every rank sends so much to every other at once; one of them does nothing for a second."""
    contents = [np.random.default_rng(rank).integers(0, 256, n_bytes, np.uint8) for rank in range(len(meshes))]

    def work(rank: int) -> None:
        mesh, exchange, out = meshes[rank], Exchange(), FrameBuffer(n_bytes)
        np.copyto(np.frombuffer(out.payload, np.uint8), contents[rank])
        out.seal(TAG.key(mesh.epoch), PayloadType.BYTES, n_bytes)
        incoming = {other: Incoming(FrameBuffer(n_bytes)) for other in mesh.peers}
        if rank == paused:
            time.sleep(1)
        mesh.send(mesh.targets(mesh.peers), out, exchange)
        mesh.expect(mesh.sources(incoming), TAG.key(mesh.epoch), exchange)
        mesh.wait(exchange, 60)
        for other in mesh.peers:
            assert np.array_equal(np.frombuffer(incoming[other].buffer.payload, np.uint8), contents[other])

    on_all(work, len(meshes))


@pytest.mark.parametrize("with_helper", [True, False], ids=["C", "python"])
def test_large_frames_between_all_at_once_through_little_memory(tls_pairs: TlsPairs, with_helper: bool) -> None:
    with open_meshes(4, with_little_memory(tls_pairs), with_helper=with_helper) as meshes:
        exchange_all(meshes, MAX_PAYLOAD_BYTES, paused=2)
        exchange_all(meshes, 10_000)
