"""The master: lets workers join, plans, gives every rank its slice, and runs passes with them.

``Listener`` is the open port; ``Listener.form`` makes a ``Cluster`` of those who came. The thread that forms it
also runs passes; handshakes and control links have their own threads and meet it at a queue.
"""

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

from tpi.cluster.cluster import Cluster, reason_of
from tpi.cluster.control.messages import AnyMessage
from tpi.cluster.forming import Forming
from tpi.cluster.membership.member import Member
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.pairing.acceptor import AcceptedLink, Acceptor
from tpi.cluster.pairing.addresses import listen, own_addresses
from tpi.cluster.pairing.authority import Authority, MasterGate
from tpi.cluster.pairing.gate import DataTokens
from tpi.cluster.pairing.hello import ControlHello
from tpi.cluster.reports import Ready, Report, Waiting
from tpi.config import MasterSettings
from tpi.errors import LinkError, ProtocolError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import read_spec
from tpi.weights.identity import model_digest

_POLL_S = 0.2


class Listener:
    """The master's open port, with the model read. A context manager; ``close`` is idempotent."""

    def __init__(self, settings: MasterSettings) -> None:
        """Raises:
        ModelFileError, UnsupportedModelError: the model cannot be read or computed.
        LinkError: the port cannot be opened.
        """
        self._settings = settings
        self.gguf = read_gguf(settings.model)
        self.spec = read_spec(self.gguf, model_digest(self.gguf))
        self._stack = ExitStack()
        self._events: queue.SimpleQueue[tuple[Member, AnyMessage | LinkError]] = queue.SimpleQueue()
        self._links: queue.SimpleQueue[AcceptedLink] = queue.SimpleQueue()
        self._is_formed = False
        self._authority = Authority.open(settings.folders.state / "authority", settings.name)
        self._tokens = DataTokens()
        self.refusals: queue.SimpleQueue[str] = queue.SimpleQueue()
        """One line for every caller that was turned away."""
        gate = MasterGate(self._authority, self._tokens)
        sock = listen(settings.bind, settings.port)
        self._acceptor = self._stack.enter_context(Acceptor(sock, gate, self._take_link, self.refusals.put))
        try:
            self.addresses = own_addresses(settings.bind, self._acceptor.port)
            self.join_key = self._authority.join_key(tuple(self.addresses)).encode()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the port, and the links of those who came too late."""
        self._stack.close()
        with contextlib.suppress(queue.Empty):
            while True:
                self._links.get_nowait().socket.close()

    def form(self, report: Report, check: Callable[[], None] = lambda: None) -> Cluster:
        """Waits for the workers, plans, lets every rank prepare, connects the data links; blocks.

        ``check`` is called about every 0.2 s and may raise.

        Raises:
            LinkError: not enough workers came in time, or one went away or cannot go on.
            MemoryBudgetError, DiskSpaceError, ModelFileError: this device cannot hold its share.
        """
        members: list[Member] = []
        try:
            self._wait_for_workers(members, report, check)
            forming = Forming(self._settings, self.gguf, self.spec, members, report)
            with ExitStack() as stack:
                host = stack.enter_context(forming.make_host())
                forming.prepare(host, lambda wait_s: self._poll(members, forming, check, wait_s))
                self._connect(members, forming, check)
                cluster = Cluster(forming.plan, host, members)
                report(Ready(len(members) + 1))
                stack.pop_all()
            self._is_formed = True
            return cluster
        except BaseException as error:
            for member in members:
                member.dismiss(reason_of(error))
            raise

    def _wait_for_workers(self, members: list[Member], report: Report, check: Callable[[], None]) -> None:
        wanted, wait_s = self._settings.n_workers, self._settings.wait_s
        started = time.monotonic()
        report(Waiting(0, wanted, None))
        while sum(member.offer is not None for member in members) < wanted:
            if wait_s is not None and time.monotonic() - started > wait_s:
                raise LinkError(
                    f"{len(members)} of {wanted} devices joined within {wait_s:g} s: start `tpi join` on the others"
                )
            check()
            self._admit(members, wanted)
            for member, message in self._take():
                if member not in members:
                    continue
                if isinstance(message, LinkError):
                    members.remove(member)
                    member.close()
                else:
                    self._take_offer(members, member, message)
                n_joined = sum(member.offer is not None for member in members)
                report(Waiting(n_joined, wanted, member.name))

    def _take_link(self, link: AcceptedLink) -> None:
        """In the handshake's thread: a link for the forming thread, or for nobody once the cluster is formed."""
        if self._is_formed:
            Member(link, lambda *_: None).dismiss("the cluster has all its workers: stop it to let others join")
        else:
            self._links.put(link)

    def _admit(self, members: list[Member], wanted: int) -> None:
        """Makes members of the control links that came in; one device joins once, and no more than are wanted."""
        while True:
            try:
                link = self._links.get_nowait()
            except queue.Empty:
                return
            taken = any(member.name == link.device.name for member in members)
            if not isinstance(link.hello, ControlHello):
                link.socket.close()
            elif taken or len(members) >= wanted:
                reason = "this device has joined already" if taken else f"the cluster has its {wanted} workers"
                Member(link, lambda *_: None).dismiss(reason)
            else:
                members.append(Member(link, lambda *event: self._events.put(event)))

    def _take_offer(self, members: list[Member], member: Member, message: AnyMessage) -> None:
        """One worker's nonsense does not keep the others from joining."""
        try:
            member.take_offer(message)
        except ProtocolError as error:
            members.remove(member)
            self.refusals.put(str(error))
            member.dismiss(str(error))

    def _take(self, wait_s: float = _POLL_S) -> Sequence[tuple[Member, AnyMessage | LinkError]]:
        """The events that are there, or else the first that comes within ``wait_s``."""
        events: list[tuple[Member, AnyMessage | LinkError]] = []
        try:
            events.append(self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait())
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def _poll(self, members: list[Member], forming: Forming, check: Callable[[], None], wait_s: float) -> None:
        """One look at what happened while ranks prepare."""
        check()
        self._admit(members, len(members))
        for member, message in self._take(wait_s):
            if member not in members:
                continue
            if isinstance(message, LinkError):
                raise message
            forming.take(member, message)

    def _connect(self, members: list[Member], forming: Forming, check: Callable[[], None]) -> None:
        """Asks every worker for its data link and takes it."""
        epoch = forming.plan.epoch
        for member in members:
            member.ask_for_data(epoch, self._tokens.issue(member.name, epoch))
        missing = {member.name: member for member in members}
        while missing:
            check()
            _check_alive(members)
            try:
                link = self._links.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            member_or_none = missing.get(link.device.name)
            if isinstance(link.hello, ControlHello) or member_or_none is None:
                link.socket.close()
                continue
            member_or_none.data = DataLink(link.socket, member_or_none.name, epoch=epoch, timeout_s=None)
            del missing[link.device.name]
        _check_alive(members)  # again: who ended while its data link was taken did not shut that down


def _check_alive(members: Sequence[Member]) -> None:
    for member in members:
        if member.end is not None:
            raise member.end
