"""Links as an epoch opens: those of another epoch, or of another kind, are nobody's."""

import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.cluster.mesh.content import LIMIT_S
from tpi.cluster.control.messages import LinkFailure, LinksOpened, Peer
from tpi.cluster.epoch import linking, links
from tpi.cluster.epoch.answers import Answers
from tpi.cluster.epoch.linking import Linking
from tpi.cluster.epoch.links import WorkerLinks, device_of
from tpi.cluster.epoch.opening import Opened
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.relay import Relays
from tpi.cluster.pairing.acceptor import AcceptedLink, close_untaken
from tpi.cluster.pairing.hello import DataHello, RelayHello
from tpi.errors import LinkTimeoutError, ProtocolError

EPOCH = 3
TOKEN = b"0123456789abcdef"
PI = Peer(2, "pi", "ab", (), 0, TOKEN)


class Arrivals:
    """Links that came in, and the callers' ends."""

    def __init__(self) -> None:
        self.queue: queue.Queue[AcceptedLink] = queue.Queue()
        self._ends: list[socket.socket] = []

    def come(self, epoch: int = EPOCH, kind: type[DataHello | RelayHello] = DataHello) -> socket.socket:
        """The caller's end of a new link of ``PI``."""
        here, there = socket.socketpair()
        there.settimeout(LIMIT_S)
        self._ends += [here, there]
        link = AcceptedLink(cast(Any, here), device_of(PI), kind("pi", epoch, TOKEN), "pi:1")
        self.queue.put(link)
        return there

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def arrivals() -> Iterator[Arrivals]:
    arrivals = Arrivals()
    yield arrivals
    arrivals.close()


def is_closed(end: socket.socket) -> bool:
    return end.recv(1) == b""


def check() -> None:
    """Nothing is over."""


def worker_links() -> WorkerLinks:
    return WorkerLinks(EPOCH, cast(Any, None), cast(Any, None), cast(Any, None))


def master_linking(arrivals: Arrivals) -> Linking:
    member = SimpleNamespace(rank=2, name="pi", title="pi (rank 2)", device=device_of(PI))
    answers = SimpleNamespace(by_rank={2: member}, poll=lambda wait_s: None)
    membership = SimpleNamespace(data_links=arrivals.queue)
    return Linking(cast(Any, membership), cast(Any, SimpleNamespace(epoch=EPOCH)), cast(Answers, answers))


def test_a_worker_takes_links_of_its_epoch_only(arrivals: Arrivals) -> None:
    stale, good = arrivals.come(EPOCH - 1), arrivals.come()
    opened, failures = worker_links(), dict[int, str]()
    opened._expect_all([PI], arrivals.queue, failures, check)
    assert is_closed(stale) and failures == {} and list(opened.links) == [2]
    opened.close()
    assert is_closed(good)


def test_a_link_in_place_of_another_ends_it(arrivals: Arrivals) -> None:
    opened, failures = worker_links(), dict[int, str]()
    first = arrivals.come()
    opened._expect_all([PI], arrivals.queue, failures, check)
    second = arrivals.come()
    opened._expect_all([PI], arrivals.queue, failures, check)
    assert is_closed(first)
    opened.close()
    assert is_closed(second)
    late = arrivals.come()
    opened._expect_all([PI], arrivals.queue, failures, check)
    assert is_closed(late) and opened.links == {}, "a call that comes through when all is over"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_call_that_fails_in_any_way_is_told() -> None:
    def call() -> Any:
        raise UnicodeError("label too long")

    failures = dict[int, str]()
    worker_links()._call_all([(PI, call)], failures, check)
    assert failures == {2: "label too long"}


def test_nobody_called(arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "EXPECT_LIMIT_S", 0.05)
    failures = dict[int, str]()
    worker_links()._expect_all([PI], arrivals.queue, failures, check)
    assert failures == {2: "pi did not call within 0.05 s"}


def test_a_worker_keeps_no_link_that_nobody_took(arrivals: Arrivals) -> None:
    ends = [arrivals.come() for _ in range(2)]
    close_untaken(arrivals.queue)
    assert all(is_closed(end) for end in ends)


def test_the_master_takes_data_links_of_its_epoch_only(arrivals: Arrivals) -> None:
    wrong = [arrivals.come(EPOCH - 1), arrivals.come(kind=RelayHello)]
    arrivals.come()
    found: dict[int, DataLink] = {}
    master_linking(arrivals)._take_links(found)
    assert all(is_closed(end) for end in wrong) and list(found) == [2]


def test_the_master_says_what_to_do_where_none_comes(arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "ANSWER_LIMIT_S", 0.05)
    with pytest.raises(LinkTimeoutError, match=r"^pi \(rank 2\) opened no .* within 0\.05 s: start `tpi join` there"):
        master_linking(arrivals)._take_links({})


@pytest.mark.parametrize("rank", [0, 2, 77])
def test_a_link_that_cannot_be_is_no_failure(arrivals: Arrivals, rank: int) -> None:
    with pytest.raises(ProtocolError, match=rf"pi \(rank 2\) speaks of a link to rank {rank}"):
        master_linking(arrivals)._failures_of({2: LinksOpened(EPOCH, (LinkFailure(rank, "no route"),))})


def test_what_no_epoch_takes_over_is_closed(tmp_path: Path) -> None:
    here, there = socket.socketpair()
    n_threads = threading.active_count()
    with there:
        with Opened(Mesh(0, {1: DataLink(here, "pi")}, EPOCH), Relays(), None, ()) as opened:
            assert opened.mesh is not None
        assert is_closed(there) and threading.active_count() == n_threads
        opened.close()
