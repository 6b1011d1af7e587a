"""The thread that runs steps: what ends it, and that nobody waits for ever then."""

import queue
import threading
from pathlib import Path

import pytest

from tests.models import write_random_model
from tests.unit.engine.ranks import FakeRanks
from tpi.engine.driver import Driver
from tpi.engine.generation import Generation, Request
from tpi.engine.language import Language
from tpi.engine.scheduler import Scheduler
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.errors import Cancelled, LinkError, TpiError
from tpi.model.architectures import read_spec
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass

WAIT_S = 10.0
REQUEST = Request((5, 6, 7), SamplingSettings(seed=1), GenerationSettings(20, raw=True))


class Panic(BaseException):
    """What Rust's panics are in Python: no Exception."""


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return Language(write_random_model(Path(tmp_path_factory.mktemp("model")) / "model.gguf"))


@pytest.fixture
def ranks(language: Language) -> FakeRanks:
    return FakeRanks(read_spec(language.gguf, ""))


@pytest.fixture
def scheduler(language: Language, ranks: FakeRanks) -> Scheduler:
    return Scheduler(ranks.as_runner, ranks.table, language.vocabulary)


def submit(scheduler: Scheduler) -> tuple[Generation, "queue.SimpleQueue[None]"]:
    """A generation, and news of it."""
    news: queue.SimpleQueue[None] = queue.SimpleQueue()
    return scheduler.submit(REQUEST, lambda: news.put(None)), news


def wait_over(generation: Generation, news: "queue.SimpleQueue[None]") -> None:
    while not generation.is_over:
        news.get(timeout=WAIT_S)


def test_answers_come_without_being_asked_for(scheduler: Scheduler, ranks: FakeRanks) -> None:
    with Driver(scheduler, ranks.check_alive, lambda error: None):
        for _ in range(2):
            generation, news = submit(scheduler)
            wait_over(generation, news)
            assert generation.answer.finish == "length"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LinkError("attic (rank 1) is gone"), "attic .rank 1. is gone"),
        (AssertionError("no"), "a defect of tpi ended the session: AssertionError"),
        (Panic("no"), "a defect of tpi ended the session: .*Panic"),
    ],
)
def test_what_ends_it_is_told_to_all(
    scheduler: Scheduler, ranks: FakeRanks, monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    def fail(work: Pass) -> tuple[Row, ...]:
        raise error

    monkeypatch.setattr(ranks, "run", fail)
    failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()
    with Driver(scheduler, ranks.check_alive, failures.put):
        generation, news = submit(scheduler)
        wait_over(generation, news)
        assert generation.answer.finish == "error"
        found = failures.get(timeout=WAIT_S)
        assert found is error or (isinstance(found, RuntimeError) and str(found) == repr(error))
        with pytest.raises(TpiError, match=told):
            scheduler.submit(REQUEST)


def test_a_loss_is_noticed_while_nobody_asks(scheduler: Scheduler) -> None:
    loss = LinkError("attic (rank 1) is gone")

    def check_alive() -> None:
        raise loss

    failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()
    with Driver(scheduler, check_alive, failures.put):
        assert failures.get(timeout=WAIT_S) is loss
        with pytest.raises(LinkError, match="attic"):
            scheduler.submit(REQUEST)


def test_a_pass_ends_when_its_last_caller_hangs_up(language: Language) -> None:
    begun, stopped = threading.Event(), threading.Event()

    class Slow(FakeRanks):
        def run(self, work: Pass) -> tuple[Row, ...]:
            begun.set()
            assert stopped.wait(WAIT_S), "nobody ends it"
            raise Cancelled("the pass was stopped")

        def cancel(self, pass_id: int) -> None:
            stopped.set()

    ranks = Slow(read_spec(language.gguf, ""))
    scheduler = Scheduler(ranks.as_runner, ranks.table, language.vocabulary)
    with Driver(scheduler, ranks.check_alive, lambda error: None):
        generation, news = submit(scheduler)
        assert begun.wait(WAIT_S)
        scheduler.cancel(generation)
        wait_over(generation, news)
        assert generation.answer.finish == "cancelled"


def test_its_end_ends_all(scheduler: Scheduler, ranks: FakeRanks) -> None:
    with Driver(scheduler, ranks.check_alive, lambda error: None):
        pass
    with pytest.raises(LinkError, match="the server has ended"):
        scheduler.submit(REQUEST)
