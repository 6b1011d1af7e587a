"""Connected TLS sockets and data links over loopback, with real certificates, for tests. Threads: none that outlive a
call."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.allreduce.star import StarMaster, StarWorker
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority
from tpi.cluster.pairing.certificates import key_pem, make_signing_request, new_key
from tpi.cluster.pairing.hello import JoinHello
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import Address
from tpi.runtime.protocols import Allreduce


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

    @contextmanager
    def data_links(self, epoch: int = 1, timeout_s: float = 20.0) -> Iterator[tuple[DataLink, DataLink]]:
        """The master's end and the device's of a data link."""
        accepted, called = self.connect()
        with (
            DataLink(accepted, "the device", epoch=epoch, timeout_s=timeout_s) as master,
            DataLink(called, "the master", epoch=epoch, timeout_s=timeout_s) as device,
        ):
            yield master, device

    @contextmanager
    def star(self, n_ranks: int, payload_format: PayloadFormat, max_values: int) -> Iterator[list[Allreduce]]:
        """The ends of a star over as many links as it needs, by rank; for two ranks or more."""
        with ExitStack() as stack:
            pairs = [stack.enter_context(self.data_links()) for _ in range(1, n_ranks)]
            links = {rank: pair[0] for rank, pair in enumerate(pairs, start=1)}
            ends: list[Allreduce] = [StarMaster(links, payload_format, max_values)]
            for rank, pair in enumerate(pairs, start=1):
                ends.append(StarWorker(rank, pair[1], payload_format, max_values))
            yield ends


def enrol(authority: Authority, name: str, folder: Path) -> Identity:
    """An identity as ``connect.join`` makes it, without a connection."""
    key = new_key()
    secret = authority.join_key((Address("127.0.0.1", 1),)).secret
    welcome = authority.admit(JoinHello(name, secret, make_signing_request(key, name)))
    chain = key_pem(key) + ssl.DER_cert_to_PEM_cert(welcome.certificate).encode()
    authority_pem = ssl.DER_cert_to_PEM_cert(welcome.authority).encode()
    return IdentityStore(folder).save(authority.fingerprint, welcome.name, chain, authority_pem)
