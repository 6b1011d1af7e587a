"""A worker opens its data links of an epoch: to the master, to workers that it calls, from workers that call it, and
through the master to those that neither can reach.

Blocks its caller; calls run side by side in threads that end with them.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from tpi.cluster.control.messages import LinkFailure, OpenLinks, Peer, one_line
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.pairing.acceptor import AcceptedLink
from tpi.cluster.pairing.connect import OpenedLink, open_data, open_peer, open_relay
from tpi.cluster.pairing.gate import WorkerGate
from tpi.cluster.pairing.identity import Identity
from tpi.cluster.pairing.joinkey import Address
from tpi.cluster.pairing.tls import Device
from tpi.errors import LinkError, TpiError

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

    def close(self) -> None:
        """Ends all links that nobody took."""
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
            self.links[0] = DataLink(opened.socket, f"the master {opened.host}")
        failures: dict[int, str] = {}
        calls = [(peer, self._call_of(peer)) for peer in message.call]
        calls += [(peer, self._relay_of(peer)) for peer in message.relay]
        self._call_all(calls, failures, check)
        self._expect_all(message.expect, arrived, failures, check)
        return tuple(LinkFailure(rank, one_line(reason)) for rank, reason in sorted(failures.items()))

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
                    opened = call()
                    with mutex:
                        self.links[peer.rank] = DataLink(opened.socket, title_of(peer))
                except (TpiError, OSError) as error:
                    with mutex:
                        failures[peer.rank] = str(error)

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
                peer = missing.pop(link.device, None)
                if peer is None:
                    link.socket.close()
                else:
                    self.links[peer.rank] = DataLink(link.socket, title_of(peer))
        for peer in missing.values():
            failures[peer.rank] = f"{peer.name} did not call within {EXPECT_LIMIT_S:g} s"


def title_of(peer: Peer) -> str:
    """What errors call a peer."""
    return f"{peer.name} (rank {peer.rank})"


def device_of(peer: Peer) -> Device:
    """Who a peer's certificate must say that it is."""
    return Device(peer.name, int(peer.serial, 16))
