"""The master has every two ranks of an epoch linked: it tells workers whom to call, tries the other way round, and
relays pairs that cannot meet. Runs in the master's thread.
"""

import queue
import secrets
import time
from contextlib import suppress

from tpi.cluster.control.messages import LinksOpened, OpenLinks, Peer, Plan, one_line
from tpi.cluster.epoch.answers import ANSWER_LIMIT_S, POLL_S, Answers
from tpi.cluster.membership.member import Member
from tpi.cluster.membership.membership import Membership
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.relay import Relays
from tpi.cluster.pairing.acceptor import AcceptedLink
from tpi.cluster.pairing.gate import TOKEN_BYTES
from tpi.cluster.pairing.hello import DataHello, RelayHello
from tpi.cluster.reports import Detour
from tpi.errors import LinkTimeoutError, ProtocolError
from tpi.model.architectures import blocks_of
from tpi.model.flow import flows_that_travel

_MAX_DETOURS = 28
"""Where more pairs cannot reach each other, only those are relayed that cannot do without."""
Pair = tuple[int, int]


class Linking:
    """Links the members of one epoch."""

    def __init__(self, membership: Membership, plan: Plan, answers: Answers) -> None:
        self._membership, self._plan, self._answers = membership, plan, answers
        self._by_rank = answers.by_rank

    def connect(self, links: dict[int, DataLink]) -> dict[Pair, str]:
        """The master's links go to ``links``; returns the pairs of workers that neither can call, and why.

        Raises:
            LinkError: a worker is gone, or links take too long.
        """
        epoch, tokens = self._plan.epoch, self._membership.tokens
        peers = {pair: self._peers_of(pair) for pair in self._pairs()}
        for member in self._by_rank.values():
            rank = member.rank
            call = tuple(peers[low, rank][0] for low in self._by_rank if low < rank)
            expect = tuple(peers[rank, high][1] for high in self._by_rank if high > rank)
            member.send(OpenLinks(epoch, tokens.issue(member.name, epoch), call, expect))
        self._take_links(links)
        failures = self._failures_of(self._answers.wait_for_all(LinksOpened, self._by_rank, ANSWER_LIMIT_S))
        if not failures:
            return {}
        # The other way round: perhaps only one of the two cannot be called.
        concerned = sorted({rank for pair in failures for rank in pair})
        for rank in concerned:
            call = tuple(peers[pair][1] for pair in failures if pair[0] == rank)
            expect = tuple(peers[pair][0] for pair in failures if pair[1] == rank)
            self._by_rank[rank].send(OpenLinks(epoch, None, call, expect))
        again = self._failures_of(self._answers.wait_for_all(LinksOpened, concerned, ANSWER_LIMIT_S))
        return {pair: f"{failures[pair]}; {reason}" for pair, reason in again.items()}

    def relay(self, failures: dict[Pair, str], relays: Relays) -> tuple[bool, tuple[Detour, ...]]:
        """Joins pairs that cannot reach each other, through the master; whether all pairs are linked now.

        Raises:
            LinkError: as ``connect``.
        """
        needed = set(failures) if len(failures) <= _MAX_DETOURS else set(failures) & self._needed_pairs()
        for pair in sorted(needed):
            self._relay_pair(pair, relays)
        if n_left := len(set(failures) - needed):
            self._membership.notes.add(f"{n_left} pairs of devices cannot reach each other: sums are added up by star")
        return not n_left, tuple(Detour(pair, failures[pair]) for pair in sorted(needed))

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
        missing = {member.device: member for member in self._by_rank.values()}
        deadline_s = time.monotonic() + ANSWER_LIMIT_S
        while missing:
            self._answers.poll(0)
            link = self._next_link()
            if link is not None and link.device in missing and self._is_of(link, DataHello):
                member = missing.pop(link.device)
                links[member.rank] = DataLink(link.socket, member.title)
            elif link is not None:
                link.socket.close()
            if missing and time.monotonic() > deadline_s:
                names = ", ".join(member.title for member in missing.values())
                raise LinkTimeoutError(
                    f"{names} opened no data link within {ANSWER_LIMIT_S:g} s: start `tpi join` there again"
                )

    def _next_link(self) -> AcceptedLink | None:
        with suppress(queue.Empty):
            return self._membership.data_links.get(timeout=POLL_S)
        return None

    def _is_of(self, link: AcceptedLink, kind: type[DataHello | RelayHello]) -> bool:
        """Whether it is of this kind, and of this epoch."""
        return isinstance(link.hello, kind) and link.hello.epoch == self._plan.epoch

    def _failures_of(self, answers: dict[int, LinksOpened]) -> dict[Pair, str]:
        """Why each pair that is not linked is not: what the one that called says.

        Raises:
            ProtocolError: a worker speaks of a link that it cannot have.
        """
        found: dict[Pair, str] = {}
        for rank, answer in answers.items():
            for failure in answer.failures:
                if failure.rank not in self._by_rank or failure.rank == rank:
                    raise ProtocolError(
                        f"{self._by_rank[rank].title} speaks of a link to rank {failure.rank}, which it was not told "
                        "to open"
                    )
                pair = min(rank, failure.rank), max(rank, failure.rank)
                if pair not in found or "did not call" in found[pair]:
                    found[pair] = one_line(failure.reason)
        return found

    def _relay_pair(self, pair: Pair, relays: Relays) -> None:
        expected: dict[bytes, str] = {}
        for rank, other in (pair, pair[::-1]):
            token = self._membership.tokens.issue(self._by_rank[rank].name, self._plan.epoch)
            expected[token] = self._by_rank[rank].title
            peer = self._peer_of(self._by_rank[other], token)
            self._by_rank[rank].send(OpenLinks(self._plan.epoch, None, relay=(peer,)))
        halves: list[AcceptedLink] = []
        deadline_s = time.monotonic() + ANSWER_LIMIT_S
        try:
            while expected:
                self._answers.poll(0)
                link = self._next_link()
                if link is not None and isinstance(link.hello, RelayHello) and expected.pop(link.hello.token, ""):
                    halves.append(link)
                elif link is not None:
                    link.socket.close()
                if expected and time.monotonic() > deadline_s:
                    names = ", ".join(expected.values())
                    raise LinkTimeoutError(
                        f"{names} opened no link through the master within {ANSWER_LIMIT_S:g} s, which ranks {pair[0]} "
                        f"and {pair[1]} need of it: start `tpi join` there again"
                    )
        except BaseException:
            for half in halves:
                half.socket.close()
            raise
        relays.join(halves[0].socket, halves[1].socket)
        self._answers.wait_for_all(LinksOpened, pair, ANSWER_LIMIT_S)

    def _needed_pairs(self) -> set[Pair]:
        """Those that even the star sends anything between."""
        pairs: set[Pair] = set()
        for flow in flows_that_travel(blocks_of(self._plan.spec), self._plan.partition):
            for rank in flow.participants:
                middle = flow.receivers[0]
                pairs.add((min(rank, middle), max(rank, middle)))
            if len(flow.contributors) == 1:
                pairs |= {(min(flow.contributors[0], r), max(flow.contributors[0], r)) for r in flow.receivers}
        return pairs
