"""Who is here: the open port, the workers that came in by it, what they offer, and their news. Outlives epochs.

Owns port, authority, tokens and members. The master's thread takes the news; handshakes and control links have their
own threads and meet it at bounded queues. One thread of its own watches the registry for devices that were removed.
"""

import contextlib
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tpi.cluster.control.messages import Offer, Progress, Revoked
from tpi.cluster.membership.member import Member, News
from tpi.cluster.pairing.acceptor import AcceptedLink, Acceptor, close_untaken
from tpi.cluster.pairing.addresses import listen, own_addresses
from tpi.cluster.pairing.authority import Authority, MasterGate
from tpi.cluster.pairing.gate import LinkTokens
from tpi.cluster.pairing.hello import ControlHello
from tpi.errors import LinkError, PairingError, ProtocolError, RemovedError, UsageError

MAX_NEWS = 256
"""Of one member, as long as nobody takes them."""
MAX_LINKS = 4096
MAX_NOTES = 32
_WATCH_S = 0.5
_REASON_TIMEOUT_S = 1.0
_REASON_POLL_S = 0.01


class Notes:
    """What the user should know, a line each: the latest few. Any thread."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_NOTES)
        self._n_new = 0
        self._mutex = threading.Lock()

    def add(self, line: str) -> None:
        with self._mutex:
            self._lines.append(line)
            self._n_new += 1

    def latest(self) -> tuple[str, ...]:
        """The latest lines, oldest first."""
        with self._mutex:
            return tuple(self._lines)

    def take_new(self) -> list[str]:
        """The lines since the last time, or the latest of them and how many there were."""
        with self._mutex:
            n_new, self._n_new = self._n_new, 0
            lines = list(self._lines)[-n_new:] if n_new else []
            return [*([f"{n_new - len(lines)} lines before these were left out"] if n_new > len(lines) else []), *lines]


class Membership:
    """A context manager; ``close`` is idempotent."""

    def __init__(self, state: Path, name: str, bind: str, port: int) -> None:
        """Raises:
        LinkError: the port cannot be opened.
        """
        self._stack = ExitStack()
        self._news: queue.Queue[tuple[Member, News]] = queue.Queue()
        self._n_news: Counter[Member] = Counter()
        """Of each member, of those that are there."""
        self._news_mutex = threading.Lock()
        self._arrived: queue.Queue[AcceptedLink] = queue.Queue(MAX_LINKS)
        self.data_links: queue.Queue[AcceptedLink] = queue.Queue(MAX_LINKS)
        """Data links and relays that were asked for and came in."""
        self.members: list[Member] = []
        self.notes = Notes()
        self.on_end: Callable[[LinkError], None] = lambda error: None
        """Called, from any thread, when a member that has a rank is of no more use."""
        self.on_watch: Callable[[], None] = lambda: None
        """Called twice a second by the watching thread; may block for seconds."""
        self._is_full = False
        self.authority = Authority.open(state, name)
        self.tokens = LinkTokens()
        sock = listen(bind, port)
        gate = MasterGate(self.authority, self.tokens)
        self._acceptor = self._stack.enter_context(Acceptor(sock, gate, self._take_link, self._take_refusal))
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="tpi-members", daemon=True)
        try:
            self.addresses = own_addresses(bind, self._acceptor.port)
            self.join_key = self.authority.join_key(tuple(self.addresses)).encode()
        except BaseException:
            self._stack.close()
            raise
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the port, and the links of those who came too late. Members are dismissed before, by ``dismiss``."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._stack.close()
        for waiting in (self._arrived, self.data_links):
            close_untaken(waiting)
        self.dismiss("")

    def dismiss(self, reason: str) -> None:
        """Says goodbye to all members, with a reason unless all is well."""
        members, self.members = self.members, []
        for member in members:
            member.dismiss(reason)

    @property
    def ranked(self) -> list[Member]:
        """Those that have a rank, in its order."""
        return sorted((member for member in self.members if member.rank > 0), key=lambda member: member.rank)

    def close_door(self, is_full: bool = True) -> None:
        """From now on who comes is told that all workers are here."""
        self._is_full = is_full

    def admit(self, n_wanted: int) -> None:
        """Makes members of the control links that came in; one device joins once, and no more than are wanted."""
        while True:
            try:
                link = self._arrived.get_nowait()
            except queue.Empty:
                return
            if any(member.device.name == link.device.name for member in self.members):
                self._turn_away(link, "this device has joined already")
            elif len(self.members) >= n_wanted:
                self._turn_away(link, f"the cluster has its {n_wanted} workers")
            else:
                self.members.append(Member(link, self._deliver))

    def take_offer(self, member: Member, message: News, check: Callable[[Member, Offer], None]) -> None:
        """A member's first message. Whose offer cannot be used, is turned away, and does not keep others from joining.

        ``check`` raises UsageError or ProtocolError for an offer that cannot be used.
        """
        try:
            if isinstance(message, LinkError):
                raise message
            member.take_offer(message)
            assert member.offer is not None
            check(member, member.offer)
        except LinkError:
            self.members.remove(member)
            member.close()
        except (ProtocolError, UsageError) as error:
            self.members.remove(member)
            self.notes.add(f"turned away {member.name}: {error}")
            member.dismiss(str(error))

    def take(self, wait_s: float) -> Sequence[tuple[Member, News]]:
        """The news that are there, or else the first that come within ``wait_s``; of members only."""
        news: list[tuple[Member, News]] = []
        with contextlib.suppress(queue.Empty):
            news.append(self._news.get(timeout=wait_s) if wait_s else self._news.get_nowait())
            while True:
                news.append(self._news.get_nowait())
        with self._news_mutex:
            self._n_news -= Counter(member for member, _ in news)  # keeps those above zero
        return [entry for entry in news if entry[0] in self.members]

    def check_alive(self) -> None:
        """Raises:
        LinkError: a member is of no more use; why.
        """
        for member in self.members:
            if member.end is not None:
                raise member.end

    def wait_end(self) -> LinkError | None:
        """Why a member is of no more use, as soon as it is known, for who has lost its data link: of that the control
        link knows better, perhaps in a moment. None: nothing was heard for a second."""
        deadline_s = time.monotonic() + _REASON_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for member in self.members:
                if member.end is not None:
                    return member.end
            time.sleep(_REASON_POLL_S)
        return None

    # Other threads.

    def _deliver(self, member: Member, news: News) -> None:
        if isinstance(news, LinkError) and member.rank > 0:
            self.on_end(news)
        with self._news_mutex:
            n_waiting = self._n_news[member]
            if isinstance(news, Progress) and n_waiting >= MAX_NEWS // 2:  # which nobody looks at now
                return
            if not isinstance(news, LinkError) and n_waiting >= MAX_NEWS:
                raise ProtocolError(
                    f"{member.name} sends more than can be taken: {MAX_NEWS} of its messages wait already"
                )
            self._n_news[member] += 1
            self._news.put_nowait((member, news))

    def _take_link(self, link: AcceptedLink) -> None:
        """In the handshake's thread: for the master's thread, or for nobody once the cluster is full."""
        try:
            if not isinstance(link.hello, ControlHello):
                self.data_links.put_nowait(link)
            elif self._is_full:
                self._turn_away(link, "the cluster has all its workers: stop it to let others join")
            else:
                self._arrived.put_nowait(link)
        except queue.Full:
            link.socket.close()

    def _take_refusal(self, line: str) -> None:
        self.notes.add(f"turned away {line}")

    def _turn_away(self, link: AcceptedLink, reason: str) -> None:
        self.notes.add(f"turned away {link.device.name}: {reason}")
        Member(link, lambda *_: None).dismiss(reason)

    def _watch(self) -> None:
        """Devices that were removed, by whatever process, are told to the others and sent away."""
        told: set[int] = set()
        is_defect_told = False
        while not self._closing.wait(_WATCH_S):
            try:
                self._look_for_removed(told)
                with contextlib.suppress(LinkError):  # between two plans
                    self.on_watch()
            except Exception as error:  # who was removed must be sent away all the same
                if not is_defect_told:
                    is_defect_told = True
                    self.notes.add(f"devices are not watched as they should be: {type(error).__name__}: {error}")

    def _look_for_removed(self, told: set[int]) -> None:
        for member in list(self.members):
            try:
                self.authority.check(member.device)
            except RemovedError:
                if member.device.serial not in told:
                    told.add(member.device.serial)
                    self._revoke(member)
            except PairingError:  # the folder is being changed, or damaged: joining says so
                continue

    def _revoke(self, removed: Member) -> None:
        for member in list(self.members):
            if member is not removed:
                with contextlib.suppress(LinkError):
                    member.send(Revoked(f"{removed.device.serial:x}"))
        removed.finish(LinkError(f"{removed.title} was removed from the cluster"))
