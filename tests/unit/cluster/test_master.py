"""The master while workers join: one that sends nonsense, or goes away, does not keep the others out."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.models import write_random_model
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import (
    AnyMessage,
    EpochEnded,
    Failed,
    Goodbye,
    HeldShard,
    LinksOpened,
    Measured,
    Offer,
    OpenLinks,
    Plan,
    Prepared,
    Progress,
    Remarked,
)
from tpi.cluster.epoch import linking
from tpi.cluster.epoch.planning import FIRST_EPOCH
from tpi.cluster.master import Master
from tpi.cluster.pairing.connect import find_or_join, open_control
from tpi.cluster.pairing.identity import IdentityStore
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.cluster.reports import Event, Transfer
from tpi.config import Folders, MasterSettings, Resources
from tpi.errors import LinkError, LinkTimeoutError, ModelFileError, TpiError, UsageError
from tpi.model.architectures import blocks_of
from tpi.model.partition import Partition, divide
from tpi.weights import identity
from tpi.weights.files import read_exactly
from tpi.weights.identity import model_digest

WAIT_S = 20.0


def make_settings(folder: Path, **changes: Any) -> MasterSettings:
    folders = Folders(folder / "state", folder / "shards", folder / "cache")
    model = write_random_model(folder / "model.gguf")
    values: dict[str, Any] = {"n_workers": 1, "wait_s": WAIT_S, "bind": "127.0.0.1", "port": 0}
    return MasterSettings(model, folders, Resources(), **values | changes)


class Forming:
    """A master that forms a cluster of itself and one worker in a thread."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.stack = ExitStack()
        self.master = self.stack.enter_context(Master(make_settings(folder, **changes)))
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self.folder = folder
        self.thread = threading.Thread(target=self._form)
        self.thread.start()

    def _form(self) -> None:
        try:
            self.master.form(lambda event: None, self._check).close()
        except BaseException as error:
            self.error = error

    def _check(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt

    def worker(self, name: str) -> ControlLink:
        key = JoinKey.decode(self.master.join_key)
        identity = find_or_join(key, name, IdentityStore(self.folder / name))
        opened = open_control(key.addresses, identity)
        return self.stack.enter_context(ControlLink(opened.socket, "the master"))

    def planned(self, name: str) -> ControlLink:
        """A worker that has offered itself, and has a plan."""
        worker = self.worker(name)
        worker.send(offer())
        wait_for(worker, Plan)
        return worker

    def end(self) -> str:
        """What the forming thread ended with."""
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        assert isinstance(self.error, TpiError), self.error
        return str(self.error)


@contextmanager
def open_forming(folder: Path, **changes: Any) -> Iterator[Forming]:
    forming = Forming(folder, **changes)
    try:
        yield forming
    finally:
        forming.stop.set()
        forming.thread.join(WAIT_S)
        forming.stack.close()
        assert not forming.thread.is_alive()


@pytest.fixture
def forming(tmp_path: Path) -> Iterator[Forming]:
    with open_forming(tmp_path) as forming:
        yield forming


def offer(digest: str = "", locked: Partition | None = None) -> Offer:
    return Offer(1 << 30, [HeldShard(digest, 1)] if digest else [], locked=locked)


def wait_for(link: ControlLink, kind: type[AnyMessage]) -> AnyMessage:
    message = link.receive(WAIT_S)
    assert isinstance(message, kind), message
    return message


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def reason(link: ControlLink) -> str:
    """With which the master ends the link."""
    message = link.receive(WAIT_S)
    while not isinstance(message, Goodbye):
        message = link.receive(WAIT_S)
    return message.reason


@pytest.mark.parametrize("nonsense", [Progress(1, 2, "cut"), Prepared(FIRST_EPOCH), Goodbye("bye")])
def test_nonsense_before_the_offer(forming: Forming, nonsense: AnyMessage) -> None:
    bad = forming.worker("bad")
    bad.send(nonsense)
    assert "before its offer" in reason(bad)
    good = forming.planned("good")
    good.send(Failed("enough"))
    assert "good (rank 1) cannot go on: enough" in forming.end()


def test_a_worker_that_fails_while_others_are_awaited(forming: Forming) -> None:
    """Its reason and the end of its link are two pieces of news about one worker."""
    for number in range(3):
        bad = forming.worker(f"bad{number}")
        bad.send(Failed("no\x1b[2J memory"))
        bad.close()
    forming.planned("good").close()
    assert "good (rank 1) is gone" in forming.end()


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([offer()], "worker sent Offer while the cluster was being formed"),
        ([EpochEnded(FIRST_EPOCH, 0)], "worker sent EpochEnded while"),
        ([Prepared(FIRST_EPOCH + 1)], "worker sent Prepared while"),
        ([Measured(FIRST_EPOCH + 1)], "worker sent Measured while"),
        ([Prepared(FIRST_EPOCH), Prepared(FIRST_EPOCH)], "worker answered twice"),
        ([LinksOpened(FIRST_EPOCH)], "worker answered LinksOpened, not Prepared"),
    ],
)
def test_nonsense_after_the_plan(forming: Forming, messages: list[AnyMessage], said: str) -> None:
    worker = forming.planned("worker")
    for message in messages:
        worker.send(message)
    assert said in forming.end()
    assert reason(worker).startswith("the master ended the session: worker ")
    with pytest.raises(LinkError):
        worker.receive(WAIT_S)


def test_what_a_worker_remarks_is_noted(forming: Forming) -> None:
    worker = forming.planned("worker")
    worker.send(Remarked("the disk is\x1b[2J full"))
    worker.send(Prepared(FIRST_EPOCH))
    wait_for(worker, OpenLinks)
    assert forming.master.membership.notes.latest() == ("worker (rank 1): the disk is [2J full",)


def test_a_worker_that_opens_no_link_is_gone(forming: Forming) -> None:
    worker = forming.planned("worker")
    worker.send(Prepared(FIRST_EPOCH))
    message = wait_for(worker, OpenLinks)
    assert isinstance(message, OpenLinks) and message.master is not None
    assert (message.epoch, message.call, message.expect, message.relay) == (FIRST_EPOCH, (), (), ())
    worker.close()
    assert "worker (rank 1) is gone" in forming.end()


def test_a_worker_that_makes_no_progress_is_given_up(tmp_path: Path) -> None:
    with open_forming(tmp_path, prepare_limit_s=0.6) as forming:
        worker = forming.planned("worker")
        for number in range(4):
            threading.Event().wait(0.2)
            worker.send(Progress(number, 9, "received"))
        assert forming.thread.is_alive(), "it was given up although it told how far it is"
        assert forming.master.membership.notes.latest() == ()
        assert "worker (rank 1) made no progress for 0.6 s" in forming.end()
        assert isinstance(forming.error, LinkTimeoutError)
        late = "worker (rank 1) made no progress for 0.3 s; after 0.6 s it is given up"
        assert forming.master.membership.notes.latest() == (late,)


def test_a_worker_that_lives_and_opens_no_link_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "ANSWER_LIMIT_S", 0.5)
    with open_forming(tmp_path) as forming:
        worker = forming.planned("worker")
        worker.send(Prepared(FIRST_EPOCH))
        wait_for(worker, OpenLinks)
        said = "worker (rank 1) opened no data link within 0.5 s: start `tpi join` there again"
        assert forming.end() == said
        assert reason(worker).endswith(said)


def test_a_shard_cut_for_an_impossible_partition_keeps_nobody_out(forming: Forming) -> None:
    spec = forming.master.spec
    digest = model_digest(forming.master.gguf)
    right = divide(blocks_of(spec), [1, 1])
    for number, wrong in enumerate([Partition(2, right.shares[:-1]), Partition(2, ())]):
        worker = forming.worker(f"worker{number}")
        worker.send(offer(digest, wrong))
        assert "cut for other shares" in reason(worker)
    notes = forming.master.membership.notes.latest()
    assert len(notes) == 2 and notes[0].startswith("turned away worker0: the shard that it brings was cut for other")
    forming.planned("good")


def test_who_comes_while_the_cluster_is_formed_is_told_that_it_is_full(forming: Forming) -> None:
    forming.planned("first")
    late = forming.worker("late")
    assert reason(late) == "the cluster has all its workers: stop it to let others join"


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The model is not read before the event is set; then it is."""
    go_on = threading.Event()

    def read_later(descriptor: int, path: Path, offset: int, out: memoryview) -> None:
        assert go_on.wait(WAIT_S)
        read_exactly(descriptor, path, offset, out)

    monkeypatch.setattr(identity, "read_exactly", read_later)
    yield go_on
    go_on.set()


def test_devices_join_while_the_model_is_read(tmp_path: Path, slow_disk: threading.Event) -> None:
    with open_forming(tmp_path, n_workers=2) as forming:
        spec = forming.master.spec
        workers = {name: forming.worker(name) for name in ("bad", "right", "free")}
        wrong = Partition(3, ())
        workers["bad"].send(offer("another", wrong))
        workers["right"].send(offer("", None))
        wait_until(lambda: sum(member.offer is not None for member in forming.master.membership.members) == 1)
        with pytest.raises(LinkTimeoutError):
            workers["bad"].receive(0.5)
        slow_disk.set()
        assert "the shard that it brings cannot be used" in reason(workers["bad"])
        workers["free"].close()
        late = forming.worker("late")
        late.send(offer(model_digest(forming.master.gguf), divide(blocks_of(spec), [1, 1, 1])))
        plan = wait_for(late, Plan)
        assert isinstance(plan, Plan) and plan.rank == 1
        assert plan.spec.digest == model_digest(forming.master.gguf) == forming.master.spec.digest


def test_a_device_whose_shard_waits_to_be_compared_may_go(tmp_path: Path, slow_disk: threading.Event) -> None:
    with open_forming(tmp_path) as forming:
        gone = forming.worker("gone")
        gone.send(offer("another", Partition(2, ())))
        wait_until(lambda: len(forming.master.membership.members) == 1)
        gone.close()
        wait_until(lambda: not forming.master.membership.members)
        slow_disk.set()
        forming.planned("good")


def test_who_offers_twice_while_the_model_is_read_is_sent_away(tmp_path: Path, slow_disk: threading.Event) -> None:
    with open_forming(tmp_path) as forming:
        twice = forming.worker("twice")
        twice.send(offer("another", Partition(2, ())))
        wait_until(lambda: len(forming.master.membership.members) == 1)
        twice.send(offer("another", Partition(2, ())))
        wait_until(lambda: not forming.master.membership.members)
        slow_disk.set()
        forming.planned("good")


def test_no_device_is_late_while_the_model_is_read(tmp_path: Path, slow_disk: threading.Event) -> None:
    with open_forming(tmp_path, wait_s=2.0) as forming:
        worker = forming.worker("early")
        worker.send(offer())
        with pytest.raises(LinkTimeoutError):
            worker.receive(2.2)
        slow_disk.set()
        wait_for(worker, Plan)


def test_reading_the_model_ends_with_the_wait(tmp_path: Path, slow_disk: threading.Event) -> None:
    """As when the user presses Ctrl-C: the few MB that are being read are the last."""
    with open_forming(tmp_path) as forming:
        worker = forming.worker("early")
        wait_until(lambda: bool(forming.master.membership.members))
        forming.stop.set()
        slow_disk.set()
        assert reason(worker) == "the master was stopped"
        forming.thread.join(WAIT_S)
        assert isinstance(forming.error, KeyboardInterrupt)
        assert "tpi-digest" not in {thread.name for thread in threading.enumerate()}


def test_a_model_that_cannot_be_read_ends_the_wait(tmp_path: Path) -> None:
    with Master(make_settings(tmp_path)) as master:
        os.truncate(tmp_path / "model.gguf", 9_000)
        with pytest.raises(ModelFileError, match="is truncated: it ends at byte 9,000"):
            master.form(lambda event: None)


def test_a_long_reading_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []

    def read_slowly(descriptor: int, path: Path, offset: int, out: memoryview) -> None:
        time.sleep(0.3)
        read_exactly(descriptor, path, offset, out)

    monkeypatch.setattr(identity, "read_exactly", read_slowly)
    settings = make_settings(tmp_path, n_workers=0)
    write_random_model(settings.model, types="F16", n_layers=3, n_ff=1536)
    size = settings.model.stat().st_size
    for _ in range(2):
        with Master(settings) as master, master.form(told.append):
            pass
    steps = [(event.n_done, event.n_bytes) for event in told if isinstance(event, Transfer) and "reads" in event.how]
    assert steps and steps == sorted(steps) and steps[0] == (4 << 20, size), "once; the second start knows it"


def test_nobody_comes(tmp_path: Path) -> None:
    with open_forming(tmp_path, wait_s=0.3) as forming:
        assert "0 of 1 devices joined within 0.3 s: start `tpi join` on the others" in forming.end()


def test_a_check_that_raises_ends_the_wait_and_the_workers_are_told(forming: Forming) -> None:
    """As when the user presses Ctrl-C."""
    worker = forming.worker("early")
    wait_until(lambda: bool(forming.master.membership.members))
    forming.stop.set()
    assert reason(worker) == "the master was stopped"
    forming.thread.join(WAIT_S)
    assert isinstance(forming.error, KeyboardInterrupt)


def test_settings_that_do_not_fit_the_model_open_no_port(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError, match=r"a context of 513 cannot be: .* was trained for 1 to 512 tokens"):
        Master(make_settings(tmp_path, context=513))
    assert threading.active_count() == before and not (tmp_path / "state").exists()


def test_a_master_that_cannot_start_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LinkError("no addresses")

    monkeypatch.setattr("tpi.cluster.membership.membership.own_addresses", fail)
    before = set(threading.enumerate())
    with pytest.raises(LinkError, match="no addresses"):
        Master(make_settings(tmp_path))
    assert set(threading.enumerate()) == before
