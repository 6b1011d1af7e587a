"""A worker's session with a master of the test: what the master hears when the worker cannot go on, and what the worker
takes of it."""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.unit.cluster.pairing.masters import WAIT_S, running_master
from tests.unit.runtime.rigs import make_model
from tpi.cli.signals import Terminated
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import AnyMessage, Failed, Measure, Offer, Plan, Remarked
from tpi.cluster.epoch.host import HostDevice, RankHost
from tpi.cluster.epoch.preparing import Provision
from tpi.cluster.masterlink import MAX_INBOX
from tpi.cluster.reports import Remark
from tpi.cluster.worker import run_worker
from tpi.config import Folders, WorkerSettings
from tpi.errors import DiskSpaceError, LinkError


class Session:
    """The master's end of a worker's control link, and how the worker ended."""

    def __init__(self, plan: Plan, link: ControlLink, thread: threading.Thread, errors: list[BaseException]) -> None:
        self.plan, self.link, self._thread, self._errors = plan, link, thread, errors

    def end(self) -> BaseException | None:
        """What the worker ended with."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self._errors[0] if self._errors else None


@contextmanager
def working(folder: Path, prepare: Callable[[Provision], None]) -> Iterator[Session]:
    """A worker that has made its offer; for a plan it calls ``prepare``, which does not return a host."""
    _, model = make_model(folder / "model.gguf", weights=(1, 1), rank=1)
    plan = Plan(1, 1, model.spec, model.partition, 64, 8, 8, "f32", "F16")
    errors: list[BaseException] = []

    def make_host(plan: Plan, device: HostDevice, provision: Provision, before: RankHost | None) -> RankHost:
        prepare(provision)
        raise AssertionError("nothing is to be computed here")

    with ExitStack() as stack:
        master = stack.enter_context(running_master(folder / "master"))
        folders = Folders(folder / "state", folder / "shards", folder / "cache")
        settings = WorkerSettings(master.key.encode(), folders, name="pi")

        def work() -> None:
            try:
                run_worker(settings, lambda event: None, make_host)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        stack.callback(thread.join, WAIT_S)
        link = stack.enter_context(ControlLink(master.links.get(timeout=WAIT_S).socket, "pi"))
        assert isinstance(link.receive(WAIT_S), Offer)
        yield Session(plan, link, thread, errors)


def last_words(link: ControlLink) -> AnyMessage:
    """What comes before the end of the link."""
    last: AnyMessage = link.receive(WAIT_S)
    try:
        while True:
            last = link.receive(WAIT_S)
    except LinkError:
        return last


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DiskSpaceError("no room for the shard"), "no room for the shard"),
        (MemoryError(), "it has no memory left: give it less to do, or close other programs on it"),
        (OSError(errno.EMFILE, "Too many open files", "/shards/x"), "Too many open files: /shards/x"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (BlockingIOError(), "BlockingIOError"),
        (IndexError("row\n3"), "a defect of tpi (IndexError: row 3)"),
        (Terminated(15), "it was stopped there"),
        (KeyboardInterrupt(), "it was stopped there"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_the_master_hears_why_a_worker_ends(tmp_path: Path, error: BaseException, reason: str) -> None:
    def fail(provision: Provision) -> None:
        raise error

    with working(tmp_path, fail) as session:
        session.link.send(session.plan)
        assert last_words(session.link) == Failed(reason)
        assert session.end() is error, "and whoever started it, too"


def test_the_master_hears_what_a_worker_remarks(tmp_path: Path) -> None:
    def remark(provision: Provision) -> None:
        provision.report(Remark("the disk\n" + 600 * "!"))
        raise LinkError("enough")

    with working(tmp_path, remark) as session:
        session.link.send(session.plan)
        assert session.link.receive(WAIT_S) == Remarked("the disk " + 491 * "!")
        assert last_words(session.link) == Failed("enough")


def test_a_worker_that_hangs_takes_no_more_than_so_many_messages(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(provision: Provision) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)
        raise LinkError("what it was doing is of no use any more")

    with working(tmp_path, hang) as session:
        session.link.send(session.plan)
        assert begun.wait(WAIT_S)
        for _ in range(MAX_INBOX):
            session.link.send(Measure(1))
        with pytest.raises(LinkError):
            session.link.receive(0.5)  # nothing comes, and the link lives
        assert session.link.lost is None
        session.link.send(Measure(1))
        with pytest.raises(LinkError, match="closed the control link"):
            session.link.receive(WAIT_S)
        threading.Timer(0.3, go_on.set).start()  # when the worker's side of the link knows, too
        assert "was ended: the master sends more than can be taken" in str(session.end())
