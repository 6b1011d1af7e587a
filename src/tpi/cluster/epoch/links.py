"""A worker opens its data links of an epoch: to the master, to workers that it calls, from workers that call it, and
through the master to those that neither can reach.

Blocks its caller; calls run side by side in threads that end with them.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tpi.cluster.control.messages import LinkFailure, OpenLinks, Peer, one_line
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.pairing.acceptor import AcceptedLink
from tpi.cluster.pairing.connect import OpenedLink, open_data, open_peer, open_relay
from tpi.cluster.pairing.gate import WorkerGate
from tpi.cluster.pairing.hello import DataHello
from tpi.cluster.pairing.identity import Identity
from tpi.cluster.pairing.joinkey import Address
from tpi.cluster.pairing.tls import Device
from tpi.errors import LinkError

CALL_LIMIT_S = 2.0
"""A device in the same home answers in far less."""
EXPECT_LIMIT_S = 3.0
_CALLS_AT_ONCE = 8
_POLL_S = 0.1

Open = Callable[[], OpenedLink]


class WorkerLinks:
    """The links of one epoch as they come. ``links`` by rank; whoever takes them closes them."""

    def __init__(self, epoch: int, identity: Identity, master: Address, gate: WorkerGate) -> None:
        self.epoch = epoch
        self.links: dict[int, DataLink] = {}
        self._identity, self._master, self._gate = identity, master, gate
        self._mutex = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Ends all links that nobody took, and those that still come."""
        with self._mutex:
            self._is_closed = True
            for link in self.links.values():
                link.close()
            self.links.clear()

    def open(
        self, message: OpenLinks, arrived: "queue.Queue[AcceptedLink]", check: Callable[[], None]
    ) -> tuple[LinkFailure, ...]:
        """Does what the message says; tells which peers could not be reached, and why. ``check`` is called often and
        may raise.

        Raises:
            LinkError, ProtocolError, PairingError: the master cannot be reached.
        """
        self._gate.announce(self.epoch, {device_of(peer): peer.token for peer in message.expect})
        if message.master is not None:
            opened = open_data(self._master, self._identity, self.epoch, message.master)
            self._take(0, opened.socket, f"the master {opened.host}")
        failures: dict[int, str] = {}
        calls = [(peer, self._call_of(peer)) for peer in message.call]
        calls += [(peer, self._relay_of(peer)) for peer in message.relay]
        self._call_all(calls, failures, check)
        self._expect_all(message.expect, arrived, failures, check)
        return tuple(LinkFailure(rank, one_line(reason)) for rank, reason in sorted(failures.items()))

    def _take(self, rank: int, sock: socket.socket, title: str) -> None:
        """The link to ``rank``, in place of one that there may have been."""
        link = DataLink(sock, title)
        with self._mutex:
            ended = link if self._is_closed else self.links.get(rank)
            if not self._is_closed:
                self.links[rank] = link
        if ended is not None:
            ended.close()

    def _call_of(self, peer: Peer) -> Open:
        addresses = [Address(host, peer.port) for host in peer.hosts] if peer.port else []

        def call() -> OpenedLink:
            if not addresses:
                raise LinkError(f"{peer.name} takes no calls")
            return open_peer(addresses, self._identity, device_of(peer), self.epoch, peer.token, CALL_LIMIT_S)

        return call

    def _relay_of(self, peer: Peer) -> Open:
        return lambda: open_relay(self._master, self._identity, self.epoch, peer.token)

    def _call_all(
        self, calls: Sequence[tuple[Peer, Open]], failures: dict[int, str], check: Callable[[], None]
    ) -> None:
        waiting = list(calls)
        mutex = threading.Lock()

        def work() -> None:
            while True:
                with mutex:
                    if not waiting:
                        return
                    peer, call = waiting.pop()
                try:
                    self._take(peer.rank, call().socket, title_of(peer))
                except Exception as error:  # a thread of its own: nobody else would hear of it
                    with mutex:
                        failures[peer.rank] = str(error) or type(error).__name__

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(len(calls), _CALLS_AT_ONCE))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    check()
                    thread.join(_POLL_S)
        except BaseException:
            with mutex:
                waiting.clear()
            raise

    def _expect_all(
        self,
        peers: Sequence[Peer],
        arrived: "queue.Queue[AcceptedLink]",
        failures: dict[int, str],
        check: Callable[[], None],
    ) -> None:
        missing = {device_of(peer): peer for peer in peers}
        deadline_s = time.monotonic() + EXPECT_LIMIT_S
        while missing and time.monotonic() < deadline_s:
            check()
            with suppress(queue.Empty):
                link = arrived.get(timeout=_POLL_S)
                is_ours = isinstance(link.hello, DataHello) and link.hello.epoch == self.epoch
                peer = missing.pop(link.device, None) if is_ours else None
                if peer is None:
                    link.socket.close()
                else:
                    self._take(peer.rank, link.socket, title_of(peer))
        for peer in missing.values():
            failures[peer.rank] = f"{peer.name} did not call within {EXPECT_LIMIT_S:g} s"


def title_of(peer: Peer) -> str:
    """What errors call a peer."""
    return f"{peer.name} (rank {peer.rank})"


def device_of(peer: Peer) -> Device:
    """Who a peer's certificate must say that it is."""
    return Device(peer.name, int(peer.serial, 16))
