"""What workers answer while an epoch opens, and who is late. Runs in the master's thread; answers come as membership's
news.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from tpi.cluster.control.messages import AnyMessage, LinksOpened, Measured, Prepared, Progress, Remarked, one_line
from tpi.cluster.membership.member import Member
from tpi.cluster.membership.membership import Membership
from tpi.cluster.reports import Loading, Report, Transfer
from tpi.errors import LinkError, LinkTimeoutError, ProtocolError

POLL_S = 0.2
ANSWER_LIMIT_S = 30.0
"""For what no device needs seconds for."""
_LATE_S = 10.0
_MOST_S = 3600.0
"""Nothing that was measured takes longer."""
_SILENT = "did not answer", "is it busy with other things?"
_Answer = TypeVar("_Answer", Prepared, LinksOpened, Measured)
Check = Callable[[], None]


class Answers:
    """Those of one epoch."""

    def __init__(self, membership: Membership, epoch: int, report: Report, check: Check) -> None:
        """``check`` is called about every 0.2 s and may raise."""
        self._membership, self._epoch = membership, epoch
        self._report, self._check = report, check
        self.by_rank = {member.rank: member for member in membership.ranked}
        self._answers: dict[int, AnyMessage] = {}
        self._heard_s = dict.fromkeys(self.by_rank, time.monotonic())
        self._late: set[int] = set()
        """Ranks of which it was told that they are late."""

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

    def wait_for_all(
        self, kind: type[_Answer], ranks: Iterable[int], limit_s: float, what: tuple[str, str] = _SILENT
    ) -> dict[int, _Answer]:
        """The answers of these ranks, which are all of ``kind``; each may take ``limit_s`` from its last news on.

        Raises:
            LinkError: a worker is gone, cannot go on, or takes too long; ``what`` says what it did not do, and what to
                look at.
            ProtocolError: a worker sent what does not belong here.
        """
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
                raise ProtocolError(f"{self.by_rank[rank].name} answered {type(answer).__name__}, not {kind.__name__}")
            found[rank] = answer
        return found

    def _take(self, member: Member, message: AnyMessage) -> None:
        match message:
            case Progress():
                self._report(Transfer(member.rank, member.name, message.n_done, message.n_bytes, one_line(message.how)))
            case Remarked():
                self._membership.notes.add(f"{member.title}: {one_line(message.text)}")
            case Prepared() | LinksOpened() | Measured() if message.epoch == self._epoch:
                if member.rank in self._answers:
                    raise ProtocolError(f"{member.name} answered twice")
                if isinstance(message, Prepared):
                    self._report(Loading(member.rank, member.name))
                self._answers[member.rank] = message
            case _:
                raise ProtocolError(f"{member.name} sent {type(message).__name__} while the cluster was being formed")

    def _check_late(self, rank: int, limit_s: float, what: tuple[str, str]) -> None:
        """A rank that lives but does nothing is reported, and cut in the end."""
        failed, hint = what
        title, silent_s = self.by_rank[rank].title, time.monotonic() - self._heard_s[rank]
        if silent_s > limit_s:
            raise LinkTimeoutError(f"{title} {failed} for {limit_s:g} s: {hint}")
        late_s = min(_LATE_S, limit_s / 2)
        if silent_s > late_s and rank not in self._late:
            self._late.add(rank)
            self._membership.notes.add(f"{title} {failed} for {late_s:g} s; after {limit_s:g} s it is given up")
        elif silent_s <= late_s:
            self._late.discard(rank)


def check_links(by_rank: Mapping[int, Member], measured: Sequence[Measured], n_ranks: int) -> None:
    """``measured`` is what all ranks have seen of their links, the master first.

    Raises:
        ProtocolError: a worker's cannot be.
    """
    own, *others = measured
    for member, answer in zip(by_rank.values(), others, strict=True):
        if len(answer.latencies_s) != n_ranks or answer.n_bytes != own.n_bytes:
            raise ProtocolError(
                f"{member.title} measured {len(answer.latencies_s)} links with {answer.n_bytes} bytes each, not "
                f"{n_ranks} with {own.n_bytes}"
            )
        _check_times(member, (*answer.latencies_s, answer.exchange_s))


def check_trials(by_rank: Mapping[int, Member], measured: Sequence[Measured], n_trials: int) -> None:
    """As ``check_links``, of trials of sums."""
    for member, answer in zip(by_rank.values(), measured[1:], strict=True):
        if len(answer.sums_s) != n_trials or len(answer.cpu_s) != n_trials:
            raise ProtocolError(
                f"{member.title} tried {len(answer.sums_s)} sums and took the time of {len(answer.cpu_s)}, not of "
                f"{n_trials}"
            )
        _check_times(member, (*answer.sums_s, *answer.cpu_s))


def _check_times(member: Member, times_s: Sequence[float]) -> None:
    for time_s in times_s:
        if not 0 <= time_s <= _MOST_S:
            raise ProtocolError(f"{member.title} measured {time_s} s; 0 to {_MOST_S:g} s can be")
