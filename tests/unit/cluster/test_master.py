"""The master while workers join: one that sends nonsense, or goes away, does not keep the others out."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.models import write_random_model
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import AnyMessage, Failed, Goodbye, HeldShard, Offer, Plan, Prepared, Progress
from tpi.cluster.master import Listener
from tpi.cluster.pairing.connect import find_or_join, open_control
from tpi.cluster.pairing.identity import IdentityStore
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.cluster.reports import Waiting
from tpi.config import Folders, MasterSettings, Resources
from tpi.errors import LinkError, TpiError, UsageError
from tpi.model.architectures import blocks_of
from tpi.model.partition import Partition, divide

WAIT_S = 20.0


class Forming:
    """A master that forms a cluster of itself and one worker in a thread."""

    def __init__(self, folder: Path) -> None:
        folders = Folders(folder / "state", folder / "shards", folder / "cache")
        model = write_random_model(folder / "model.gguf")
        settings = MasterSettings(model, folders, Resources(), n_workers=1, wait_s=WAIT_S, bind="127.0.0.1", port=0)
        self.stack = ExitStack()
        self.listener = self.stack.enter_context(Listener(settings))
        self.error: BaseException | None = None
        self.joined = threading.Semaphore(0)
        self.folder = folder
        self.thread = threading.Thread(target=self._form)
        self.thread.start()

    def _form(self) -> None:
        try:
            self.listener.form(self._report).close()
        except BaseException as error:
            self.error = error

    def _report(self, event: object) -> None:
        if isinstance(event, Waiting) and event.n_joined:
            self.joined.release()

    def worker(self, name: str) -> ControlLink:
        key = JoinKey.decode(self.listener.join_key)
        identity = find_or_join(key, name, IdentityStore(self.folder / name))
        opened = open_control(key.addresses, identity)
        return self.stack.enter_context(ControlLink(opened.socket, "the master"))

    def end(self) -> str:
        """What the forming thread ended with."""
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        assert isinstance(self.error, TpiError), self.error
        return str(self.error)


@pytest.fixture
def forming(tmp_path: Path) -> Iterator[Forming]:
    forming = Forming(tmp_path)
    yield forming
    forming.stack.close()
    forming.thread.join(WAIT_S)
    assert not forming.thread.is_alive()


def offer(digest: str = "", locked: Partition | None = None) -> Offer:
    return Offer(1 << 30, [HeldShard(digest, 1)] if digest else [], locked)


def wait_for(link: ControlLink, kind: type[AnyMessage]) -> AnyMessage:
    message = link.receive(WAIT_S)
    assert isinstance(message, kind), message
    return message


@pytest.mark.parametrize("nonsense", [Progress(1, 2, "cut"), Prepared(), Goodbye("bye")])
def test_nonsense_before_the_offer(forming: Forming, nonsense: AnyMessage) -> None:
    bad = forming.worker("bad")
    bad.send(nonsense)
    goodbye = wait_for(bad, Goodbye)
    assert isinstance(goodbye, Goodbye) and "before its offer" in goodbye.reason
    good = forming.worker("good")
    good.send(offer())
    wait_for(good, Plan)
    good.send(Failed("enough"))
    assert "good (rank 1) cannot go on: enough" in forming.end()


def test_a_worker_that_fails_while_others_are_awaited(forming: Forming) -> None:
    """Its reason and the end of its link are two pieces of news about one worker."""
    for number in range(3):
        bad = forming.worker(f"bad{number}")
        bad.send(Failed("no\x1b[2J memory"))
        bad.close()
    good = forming.worker("good")
    good.send(offer())
    wait_for(good, Plan)
    good.close()
    assert "good (rank 1) is gone" in forming.end()


def test_nonsense_after_the_plan(forming: Forming) -> None:
    worker = forming.worker("worker")
    worker.send(offer())
    wait_for(worker, Plan)
    worker.send(offer())
    assert "worker sent Offer while the cluster was being formed" in forming.end()
    with pytest.raises(LinkError):
        while not isinstance(worker.receive(WAIT_S), Goodbye):
            pass
        worker.receive(WAIT_S)


def test_a_shard_cut_for_an_impossible_partition(forming: Forming) -> None:
    spec = forming.listener.spec
    right = divide(spec, blocks_of(spec), [1, 1])
    worker = forming.worker("worker")
    worker.send(offer(spec.digest, Partition(2, right.shares[:-1])))
    assert "cut for other shares" in forming.end()
    assert isinstance(forming.error, UsageError)


def test_the_reason_says_that_it_is_the_masters(forming: Forming) -> None:
    worker = forming.worker("worker")
    spec = forming.listener.spec
    worker.send(offer(spec.digest, Partition(2, ())))
    goodbye = wait_for(worker, Goodbye)
    assert isinstance(goodbye, Goodbye) and goodbye.reason.startswith("the master ended the session: ")


def test_a_master_that_cannot_start_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LinkError("no addresses")

    monkeypatch.setattr("tpi.cluster.master.own_addresses", fail)
    before = set(threading.enumerate())
    folders = Folders(tmp_path / "state", tmp_path / "shards", tmp_path / "cache")
    model = write_random_model(tmp_path / "model.gguf")
    with pytest.raises(LinkError, match="no addresses"):
        Listener(MasterSettings(model, folders, bind="127.0.0.1", port=0))
    assert set(threading.enumerate()) == before
