"""The master opens an epoch: every rank prepares what the plan says, links are opened, measured, and sums chosen.

Runs in the master's thread; what workers answer comes as membership's news.
"""

import queue
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

from tpi.cluster.allreduce.arithmetic import make_arithmetic
from tpi.cluster.control.messages import (
    AnyMessage,
    Begin,
    LinksOpened,
    Measure,
    Measured,
    OpenLinks,
    Peer,
    Plan,
    Prepared,
    Progress,
    one_line,
)
from tpi.cluster.epoch.choosing import choose, network_of, trials_of, ways
from tpi.cluster.epoch.footprint import few_tokens
from tpi.cluster.epoch.host import rank_settings
from tpi.cluster.epoch.measuring import measure_links, try_sums
from tpi.cluster.epoch.planning import with_rank
from tpi.cluster.membership.member import Member
from tpi.cluster.membership.membership import Membership
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.nativemesh import open_mesh
from tpi.cluster.mesh.relay import Relays
from tpi.cluster.pairing.acceptor import AcceptedLink
from tpi.cluster.pairing.gate import TOKEN_BYTES
from tpi.cluster.pairing.hello import DataHello, RelayHello
from tpi.cluster.reports import Choice, Detour, Loading, Report, SumWay, Transfer
from tpi.config import MasterSettings
from tpi.errors import LinkError, LinkTimeoutError, ProtocolError
from tpi.gguf.reader import Gguf
from tpi.model.architectures import blocks_of
from tpi.model.flow import Flow, flows_of, typical_flow

POLL_S = 0.2
_LATE_S = 10.0
_ANSWER_LIMIT_S = 30.0
"""For what no device needs seconds for."""
_MAX_DETOURS = 28
"""Where more pairs cannot reach each other, only those are relayed that cannot do without."""
_Answer = TypeVar("_Answer", Prepared, LinksOpened, Measured)
Check = Callable[[], None]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Opened:
    """What was opened. ``mesh`` and ``choice`` None: the master is alone."""

    mesh: Mesh | None
    relays: Relays
    choice: Choice | None
    detours: tuple[Detour, ...]


class Opening:
    """One epoch from its plan to its first pass."""

    def __init__(
        self, membership: Membership, plan: Plan, gguf: Gguf, settings: MasterSettings, report: Report, check: Check
    ) -> None:
        """``check`` is called about every 0.2 s and may raise."""
        self._cache, self._prepare_limit_s = settings.folders.cache, settings.prepare_limit_s
        self._membership, self._plan, self._gguf = membership, plan, gguf
        self._report, self._check = report, check
        self._members = membership.ranked
        self._by_rank = {member.rank: member for member in self._members}
        self._answers: dict[int, AnyMessage] = {}
        self._heard_s = dict.fromkeys(self._by_rank, time.monotonic())
        self._late: set[int] = set()
        """Ranks of which it was told that they are late."""

    def send_plans(self) -> None:
        """Tells every worker its rank and what to hold; they begin to prepare.

        Raises:
            LinkError: a worker is gone.
        """
        for member in self._members:
            member.serve_slices(self._gguf, self._plan.spec)
            member.send(with_rank(self._plan, member.rank))

    def poll(self, wait_s: float) -> None:
        """One look at what happened; between steps of the master's own preparation.

        Raises:
            LinkError: a worker is gone or cannot go on.
            ProtocolError: a worker sent what does not belong here.
        """
        self._check()
        self._membership.admit(0)
        for member, news in self._membership.take(wait_s):
            if isinstance(news, LinkError):
                raise news
            self._heard_s[member.rank] = time.monotonic()
            self._take(member, news)

    def wait_prepared(self) -> None:
        """Until every worker holds its part.

        Raises:
            LinkError: a worker is gone, cannot go on, or makes no progress.
        """
        self._wait_for_all(Prepared, self._by_rank, self._prepare_limit_s, "made no progress")

    def open_links(self, wanted: str | None) -> Opened:
        """Opens the mesh, measures it, chooses; the workers begin. ``wanted`` names an algorithm, or None.

        Raises:
            LinkError: a worker is gone, or links or measurements take too long.
        """
        with ExitStack() as stack:
            relays = stack.enter_context(Relays())
            if not self._members:
                stack.pop_all()
                return Opened(None, relays, None, ())
            links: dict[int, DataLink] = {}
            stack.callback(_close_all, links)
            failures = self._connect(links)
            is_complete, detours = self._relay(failures, relays)
            mesh = stack.enter_context(open_mesh(0, links, self._plan.epoch, self._cache))
            self._membership.on_end = mesh.shut_down
            self._membership.check_alive()  # who ended before that did not shut it down
            choice = self._choose(mesh, is_complete, wanted)
            for member in self._members:
                member.send(Begin(self._plan.epoch, choice))
            stack.pop_all()
            return Opened(mesh, relays, choice, detours)

    # Links.

    def _connect(self, links: dict[int, DataLink]) -> dict[Pair, str]:
        """The master's links go to ``links``; returns the pairs of workers that neither can call, and why."""
        epoch, tokens = self._plan.epoch, self._membership.tokens
        peers = {pair: self._peers_of(pair) for pair in self._pairs()}
        for member in self._members:
            rank = member.rank
            call = tuple(peers[low, rank][0] for low in self._by_rank if low < rank)
            expect = tuple(peers[rank, high][1] for high in self._by_rank if high > rank)
            member.send(OpenLinks(epoch, tokens.issue(member.name, epoch), call, expect))
        self._take_links(links)
        failures = self._failures_of(self._wait_for_all(LinksOpened, self._by_rank, _ANSWER_LIMIT_S))
        if not failures:
            return {}
        # The other way round: perhaps only one of the two cannot be called.
        concerned = sorted({rank for pair in failures for rank in pair})
        for rank in concerned:
            call = tuple(peers[pair][1] for pair in failures if pair[0] == rank)
            expect = tuple(peers[pair][0] for pair in failures if pair[1] == rank)
            self._by_rank[rank].send(OpenLinks(epoch, None, call, expect))
        again = self._failures_of(self._wait_for_all(LinksOpened, concerned, _ANSWER_LIMIT_S))
        return {pair: f"{failures[pair]}; {reason}" for pair, reason in again.items()}

    def _pairs(self) -> list[Pair]:
        return [(low, high) for low in self._by_rank for high in self._by_rank if low < high]

    def _peers_of(self, pair: Pair) -> tuple[Peer, Peer]:
        """Both workers as the other needs to know them, with the pair's token."""
        token = secrets.token_bytes(TOKEN_BYTES)
        low, high = (self._peer_of(self._by_rank[rank], token) for rank in pair)
        return low, high

    def _peer_of(self, member: Member, token: bytes) -> Peer:
        assert member.offer is not None
        hosts = tuple(dict.fromkeys((member.host, *member.offer.hosts)))
        return Peer(member.rank, member.name, f"{member.device.serial:x}", hosts, member.offer.port, token)

    def _take_links(self, links: dict[int, DataLink]) -> None:
        """Waits for every worker's data link."""
        missing = {member.device: member for member in self._members}
        deadline_s = time.monotonic() + _ANSWER_LIMIT_S
        while missing:
            self.poll(0)
            link = self._next_link()
            member = missing.pop(link.device, None) if link is not None else None
            if link is not None and member is not None and isinstance(link.hello, DataHello):
                links[member.rank] = DataLink(link.socket, f"{member.name} (rank {member.rank})")
            elif link is not None:
                link.socket.close()
            if time.monotonic() > deadline_s:
                names = ", ".join(member.name for member in missing.values())
                raise LinkTimeoutError(f"{names} opened no data link within {_ANSWER_LIMIT_S:g} s")

    def _next_link(self) -> AcceptedLink | None:
        with suppress(queue.Empty):
            return self._membership.data_links.get(timeout=POLL_S)
        return None

    @staticmethod
    def _failures_of(answers: dict[int, LinksOpened]) -> dict[Pair, str]:
        """Why each pair that is not linked is not: what the one that called says."""
        found: dict[Pair, str] = {}
        for rank, answer in answers.items():
            for failure in answer.failures:
                pair = min(rank, failure.rank), max(rank, failure.rank)
                if pair not in found or "did not call" in found[pair]:
                    found[pair] = one_line(failure.reason)
        return found

    def _relay(self, failures: dict[Pair, str], relays: Relays) -> tuple[bool, tuple[Detour, ...]]:
        """Joins pairs that cannot reach each other, through the master; whether all pairs are linked now."""
        needed = set(failures) if len(failures) <= _MAX_DETOURS else set(failures) & self._needed_pairs()
        for pair in sorted(needed):
            self._relay_pair(pair, relays)
        if n_left := len(set(failures) - needed):
            self._membership.notes.add(f"{n_left} pairs of devices cannot reach each other: sums are added up by star")
        return not n_left, tuple(Detour(pair, failures[pair]) for pair in sorted(needed))

    def _relay_pair(self, pair: Pair, relays: Relays) -> None:
        expected = set()
        for rank, other in (pair, pair[::-1]):
            token = self._membership.tokens.issue(self._by_rank[rank].name, self._plan.epoch)
            expected.add(token)
            peer = self._peer_of(self._by_rank[other], token)
            self._by_rank[rank].send(OpenLinks(self._plan.epoch, None, relay=(peer,)))
        halves: list[AcceptedLink] = []
        deadline_s = time.monotonic() + _ANSWER_LIMIT_S
        while expected:
            self.poll(0)
            link = self._next_link()
            if link is not None and isinstance(link.hello, RelayHello) and link.hello.token in expected:
                expected.remove(link.hello.token)
                halves.append(link)
            elif link is not None:
                link.socket.close()
            if time.monotonic() > deadline_s:
                raise LinkTimeoutError(f"the link of ranks {pair[0]} and {pair[1]} through the master was not opened")
        relays.join(halves[0].socket, halves[1].socket)
        self._wait_for_all(LinksOpened, pair, _ANSWER_LIMIT_S)

    def _needed_pairs(self) -> set[Pair]:
        """Those that even the star sends anything between."""
        pairs: set[Pair] = set()
        for flow in self._flows():
            for rank in flow.participants:
                middle = flow.receivers[0]
                pairs.add((min(rank, middle), max(rank, middle)))
            if len(flow.contributors) == 1:
                pairs |= {(min(flow.contributors[0], r), max(flow.contributors[0], r)) for r in flow.receivers}
        return pairs

    # The choice.

    def _flows(self) -> list[Flow]:
        """Those over which something travels."""
        blocks = blocks_of(self._plan.spec)
        flows = flows_of(blocks, self._plan.partition)
        return [flow for flow in flows if flow.receivers and not flow.is_local]

    def _choose(self, mesh: Mesh, is_complete: bool, wanted: str | None) -> Choice:
        plan = self._plan
        few = few_tokens(rank_settings(plan, 1))
        flow = typical_flow(self._flows())
        links = self._measure(Measure(plan.epoch), lambda: self._own_links(mesh))
        network = network_of(links, plan.partition.n_ranks)
        if flow is None:
            way = SumWay("one-shot", plan.payload, 1, network.latency_s)
            return Choice(way, way, few, network.latency_s, network.bytes_per_s)
        candidates = ways(plan, flow, network, wanted, is_complete, few)
        trials = trials_of(candidates)

        def own_trials() -> Measured:
            times = try_sums(mesh, make_arithmetic(self._cache), flow, plan.spec.n_embd, trials)
            return Measured(plan.epoch, sums_s=tuple(t[0] for t in times), cpu_s=tuple(t[1] for t in times))

        measured = self._measure(Measure(plan.epoch, tuple(trials)), own_trials)
        return choose(candidates, measured, network, few)

    def _own_links(self, mesh: Mesh) -> Measured:
        times = measure_links(mesh, self._plan.partition.n_ranks)
        return Measured(self._plan.epoch, times.latencies_s, times.n_bytes, times.exchange_s)

    def _measure(self, message: Measure, own: Callable[[], Measured]) -> list[Measured]:
        """All ranks measure at once; what each has seen, the master first."""
        for member in self._members:
            member.send(message)
        try:
            mine = own()
        except LinkError as error:
            raise self._membership.wait_end() or error from None
        return [mine, *self._wait_for_all(Measured, self._by_rank, _ANSWER_LIMIT_S).values()]

    # Answers.

    def _take(self, member: Member, message: AnyMessage) -> None:
        match message:
            case Progress():
                self._report(Transfer(member.rank, member.name, message.n_done, message.n_bytes, one_line(message.how)))
            case Prepared() | LinksOpened() | Measured() if message.epoch == self._plan.epoch:
                if member.rank in self._answers:
                    raise ProtocolError(f"{member.name} answered twice")
                if isinstance(message, Prepared):
                    self._report(Loading(member.rank, member.name))
                self._answers[member.rank] = message
            case _:
                raise ProtocolError(f"{member.name} sent {type(message).__name__} while the cluster was being formed")

    def _wait_for_all(
        self, kind: type[_Answer], ranks: Iterable[int], limit_s: float, what: str = "did not answer"
    ) -> dict[int, _Answer]:
        """The answers of these ranks, which are all of ``kind``; each may take ``limit_s`` from its last news on."""
        wanted = list(ranks)
        now_s = time.monotonic()
        self._heard_s.update(dict.fromkeys(wanted, now_s))
        while missing := [rank for rank in wanted if rank not in self._answers]:
            self.poll(POLL_S)
            for rank in missing:
                if rank not in self._answers:
                    self._check_late(rank, limit_s, what)
        found: dict[int, _Answer] = {}
        for rank in wanted:
            answer = self._answers.pop(rank)
            if not isinstance(answer, kind):
                raise ProtocolError(f"{self._by_rank[rank].name} answered {type(answer).__name__}, not {kind.__name__}")
            found[rank] = answer
        return found

    def _check_late(self, rank: int, limit_s: float, what: str) -> None:
        """A rank that lives but does nothing is reported, and cut in the end."""
        title, silent_s = self._by_rank[rank].title, time.monotonic() - self._heard_s[rank]
        if silent_s > limit_s:
            raise LinkTimeoutError(f"{title} {what} for {limit_s:g} s: is its disk all right?")
        late_s = min(_LATE_S, limit_s / 2)
        if silent_s > late_s and rank not in self._late:
            self._late.add(rank)
            self._membership.notes.add(f"{title} {what} for {late_s:g} s; after {limit_s:g} s it is given up")
        elif silent_s <= late_s:
            self._late.discard(rank)


def _close_all(links: dict[int, DataLink]) -> None:
    for link in links.values():
        link.close()
