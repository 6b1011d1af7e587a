"""Meshes between threads of one process: over plain socket pairs, or over TLS with real certificates."""

import dataclasses
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tpi.cluster.allreduce.algorithm import Algorithm, Scale
from tpi.cluster.allreduce.arithmetic import make_arithmetic
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.nativemesh import open_mesh
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority
from tpi.cluster.pairing.certificates import key_pem, make_signing_request, new_key
from tpi.cluster.pairing.hello import JoinHello
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import Address
from tpi.errors import LinkError

Connect = Callable[[], tuple[socket.socket, socket.socket]]
"""Makes both ends of a new connection."""

EPOCH = 1


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connection without encryption: fast, for tests of what goes through it."""
    return socket.socketpair()


@contextmanager
def open_meshes(
    n_ranks: int, connect: Connect = socket_pair, epoch: int = EPOCH, with_helper: bool = True
) -> Iterator[list[Mesh]]:
    """A link between every two of ``n_ranks`` ranks; the meshes by rank, in C if ``with_helper`` and it is there."""
    links: list[dict[int, DataLink]] = [{} for _ in range(n_ranks)]
    with ExitStack() as stack:
        for lower in range(n_ranks):
            for higher in range(lower + 1, n_ranks):
                ends = connect()
                links[lower][higher] = DataLink(ends[0], f"rank {higher}")
                links[higher][lower] = DataLink(ends[1], f"rank {lower}")
        meshes = (open_mesh(rank, own, epoch, None, with_helper) for rank, own in enumerate(links))
        yield [stack.enter_context(mesh) for mesh in meshes]


@contextmanager
def open_sums(
    n_ranks: int,
    make: type[Algorithm],
    scale: Scale,
    connect: Connect = socket_pair,
    max_few_values: int | None = None,
    with_helper: bool = True,
) -> Iterator["ThreadSums"]:
    """The ends of an allreduce between threads; with less than all values ``max_few_values`` a thread of its own
    carries the larger sums through. ``with_helper``: in C, if that is there."""
    if n_ranks == 1:
        yield ThreadSums([Sums(None, None)], [])
        return
    with open_meshes(n_ranks, connect, with_helper=with_helper) as meshes, ExitStack() as stack:
        ends = []
        for mesh in meshes:
            own_scale = dataclasses.replace(scale, arithmetic=make_arithmetic(None, with_helper))
            algorithm = make(mesh, own_scale)
            sums = Sums(mesh, algorithm)
            sums.use_for_few(algorithm, scale.max_values if max_few_values is None else max_few_values)
            if max_few_values is not None:
                sums.overlap()
            ends.append(stack.enter_context(sums))
        shared = ThreadSums(ends, meshes)
        yield shared
        shared.abort()


class ThreadSums:
    """The ends, by rank, and how to free those who wait when a rank has failed."""

    def __init__(self, ends: Sequence[Sums], meshes: Sequence[Mesh]) -> None:
        self.ends, self._meshes = list(ends), meshes

    def abort(self) -> None:
        """Makes every rank that waits, or comes later, raise LinkError. From any thread."""
        for mesh in self._meshes:
            mesh.shut_down(LinkError("another rank of this process stopped in the middle of a pass"))


class TlsPairs:
    """Makes connections between a master and one device of a cluster whose files lie in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.open(folder / "authority")
        self.identity = enrol(self.authority, "device", folder / "device")
        self._server_context = self.authority.server_context()
        self._client_context = self.identity.client_context()

    def connect(self) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
        """The master's end and the device's, after the handshake; the caller closes both."""
        accepted: list[ssl.SSLSocket] = []
        with listen("127.0.0.1", 0) as listener:

            def accept() -> None:
                accepted.append(self._server_context.wrap_socket(listener.accept()[0], server_side=True))

            thread = threading.Thread(target=accept)
            thread.start()
            plain = socket.create_connection(listener.getsockname())
            called = self._client_context.wrap_socket(plain)
            thread.join()
        return accepted[0], called


def enrol(authority: Authority, name: str, folder: Path) -> Identity:
    """An identity as ``connect.join`` makes it, without a connection."""
    key = new_key()
    secret = authority.join_key((Address("127.0.0.1", 1),)).secret
    welcome = authority.admit(JoinHello(name, secret, make_signing_request(key, name)))
    chain = key_pem(key) + ssl.DER_cert_to_PEM_cert(welcome.certificate).encode()
    authority_pem = ssl.DER_cert_to_PEM_cert(welcome.authority).encode()
    return IdentityStore(folder).save(authority.fingerprint, name, welcome.name, chain, authority_pem)
