"""A pass that nobody wants any more ends on every rank, and leaves no trace: whoever comes next finds what was computed
before it, and gets the answer that there would have been."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.commands import Home
from tests.cluster.ranks import DEMO
from tests.cluster.sessions import session
from tpi.cluster.cluster import Cluster
from tpi.cluster.epoch.epoch import Epoch
from tpi.cluster.epoch.seat import Seat
from tpi.cluster.mesh.datapath import MasterDatapath
from tpi.engine.chatprompt import Prompt
from tpi.engine.engine import Engine
from tpi.engine.generation import Generation
from tpi.engine.language import Language
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.errors import NumericError
from tpi.runtime.passes import Pass

TRAINED = Path(__file__).parents[1] / "trained"
MODELS = {"cells": DEMO, "windows": TRAINED / "windowed.gguf", "states": TRAINED / "deltas.gguf"}
GREEDY = SamplingSettings(temperature=0)
N_PROMPT, N_ANSWER = 200, 8
STORY = "Once upon a time, a little fox lived by the sea. "
PLACES: dict[str, tuple[type, str]] = {
    "before it is sent": (MasterDatapath, "broadcast"),
    "while it is computed": (Seat, "run"),
    "before logits come": (MasterDatapath, "gather"),
    "after it is through": (Epoch, "run"),
}

LAGS = """
import os, sys, time
from tpi.cluster.epoch.host import RankHost
run, interrupt, allow = RankHost.run, RankHost.interrupt, RankHost.allow
is_interrupted = False

def run_when_it_may(host, work):
    while os.path.exists(os.environ["TPI_HOME"] + "/lags") and not is_interrupted:
        time.sleep(0.01)
    return run(host, work)

def note_interrupt(host):
    global is_interrupted
    interrupt(host)
    is_interrupted = True

def note_allow(host):
    global is_interrupted
    is_interrupted = False
    allow(host)

RankHost.run, RankHost.interrupt, RankHost.allow = run_when_it_may, note_interrupt, note_allow
import tpi.cli.main
sys.exit(tpi.cli.main.main())
"""
"""A worker that begins no pass while there is a file, but for those that it was told to end."""

TAILS = """
import sys, time
from tpi.cluster.allreduce.driver import Sums
finish = Sums.finish

def finish_later(sums, step):
    time.sleep(0.1)
    sums._mesh.check_open()  # as if the others' parts came only now
    finish(sums, step)

Sums.finish = finish_later
import tpi.cli.main
sys.exit(tpi.cli.main.main())
"""
"""A worker that is through with every sum a little later than others."""


@contextmanager
def stopped_at(place: str, pass_id: int, engine: Engine, generations: list[Generation]) -> Iterator[None]:
    """In the pass of this number all callers hang up."""
    owner, name = PLACES[place]
    original = getattr(owner, name)

    def hang_up(part: Any, work: Pass, *arguments: Any) -> Any:
        result = original(part, work, *arguments) if place == "after it is through" else None
        if work.pass_id == pass_id:
            for generation in generations:
                engine.scheduler.cancel(generation)
        return result if result is not None else original(part, work, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, hang_up)
        yield


class Asked:
    """What an engine of three ranks is asked, with prompts that differ from their first token on."""

    def __init__(self, engine: Engine) -> None:
        self.engine, vocabulary = engine, engine.vocabulary
        self._text = vocabulary.tokenize(STORY * 50, add_special=False, parse_special=False)

    def prompt(self, number: int) -> list[int]:
        return self._text[number : number + N_PROMPT]

    def ask(self, tokens: list[int]) -> Generation:
        n_tokens = N_PROMPT + N_ANSWER - len(tokens)
        return self.engine.ask(Prompt(tuple(tokens)), GREEDY, GenerationSettings(n_tokens, raw=True))

    def finish(self, generation: Generation) -> list[int]:
        list(self.engine.follow(generation))
        return generation.tokens

    def stop(self, number: int, place: str, n_passes: int) -> list[int]:
        """Asks, and hangs up in the pass after ``n_passes``; what there was."""
        generation = self.ask(self.prompt(number))
        with stopped_at(place, self.engine.scheduler._passes.next_pass + n_passes, self.engine, [generation]):
            tokens = self.finish(generation)
        assert generation.answer.finish == "cancelled"
        return tokens


@contextmanager
def three_ranks(folder: Path, cache: Path, model: Path, program: str | None = None) -> Iterator[tuple[Cluster, Asked]]:
    """``program`` is run by workers in place of ``tpi``."""
    with ExitStack() as stack:
        homes = stack.enter_context(Home.several(2, folder, cache))
        opened = session(folder / "master", homes, (2, 1, 1), model=model, n_parallel=3, program=program)
        cluster, _ = stack.enter_context(opened)
        yield cluster, Asked(stack.enter_context(Engine(cluster, stack.enter_context(Language(model)))))


@pytest.mark.parametrize("kind", MODELS)
def test_a_pass_that_nobody_wants_leaves_no_trace(tmp_path: Path, cache: Path, kind: str) -> None:
    with three_ranks(tmp_path, cache, MODELS[kind]) as (cluster, asked):
        n_read = len(range(0, N_PROMPT, cluster.max_tokens))
        found: list[list[int]] = []
        for place in PLACES:
            for n_passes in (n_read - 1, n_read + 3):  # the last pass of the prompt, one of the answer
                n_forgotten, epoch = cluster.n_forgotten, cluster.epoch
                tokens = asked.stop(len(found), place, n_passes)
                assert len(tokens) == N_PROMPT + max(0, n_passes - n_read + 1)
                again = asked.ask(tokens)
                found.append(asked.finish(again))
                n_computed = len(tokens) - 1 if n_passes >= n_read else n_passes * (N_PROMPT // n_read)
                assert again.answer.n_cached_tokens == n_computed, (place, n_passes)
                assert (cluster.n_forgotten, cluster.epoch) == (n_forgotten, epoch + 1)
        cluster.change()
        assert found == [asked.finish(asked.ask(tokens[:N_PROMPT])) for tokens in found]


def test_where_a_rank_is_some_passes_behind_all_is_forgotten(tmp_path: Path, cache: Path) -> None:
    """Layers lie on one device after the other: the first sends on passes that the last has not begun."""
    with three_ranks(tmp_path, cache, DEMO, LAGS) as (cluster, asked):
        cluster.change(shares=None, layout="0:0 1-2:1 3:2 head:*")
        found = []
        for number, place in enumerate(["before it is sent", "while it is computed", "before logits come"]):
            (lags := tmp_path / "other-1" / "lags").touch()
            n_forgotten = cluster.n_forgotten
            tokens = asked.stop(number, place, 1)
            cluster.prepare()
            lags.unlink()
            again = asked.ask(tokens)
            found.append(asked.finish(again))
            assert cluster.n_forgotten == n_forgotten + 1, place
            assert again.answer.n_cached_tokens == 0, place
        n_forgotten = cluster.n_forgotten
        tokens = asked.stop(len(found), "after it is through", 5)  # the one before had logits
        found.append(asked.finish(asked.ask(tokens)))
        assert cluster.n_forgotten == n_forgotten, "all had come as far"
        cluster.change()
        assert found == [asked.finish(asked.ask(tokens[:N_PROMPT])) for tokens in found]


def test_what_the_master_has_come_through_is_waited_for(tmp_path: Path, cache: Path) -> None:
    """A pass without logits ends on other ranks after the master has gone on."""
    with three_ranks(tmp_path, cache, DEMO, TAILS) as (cluster, asked):
        n_read = len(range(0, N_PROMPT, cluster.max_tokens))
        assert n_read > 1
        n_forgotten = cluster.n_forgotten
        tokens = asked.stop(0, "before it is sent", n_read - 1)
        again = asked.ask(tokens)
        assert len(asked.finish(again)) == N_PROMPT + N_ANSWER
        assert cluster.n_forgotten == n_forgotten
        assert again.answer.n_cached_tokens == (n_read - 1) * (N_PROMPT // n_read)


def test_a_pass_that_fails_while_it_is_stopped(tmp_path: Path, cache: Path) -> None:
    """What is wrong is told, and the next pass runs on links of its own."""
    with three_ranks(tmp_path, cache, DEMO) as (cluster, asked):
        generation = asked.ask(asked.prompt(0))

        def fail(part: Epoch, work: Pass) -> Any:
            asked.engine.scheduler.cancel(generation)
            raise NumericError("values that are not finite")

        with pytest.MonkeyPatch.context() as patch, pytest.raises(NumericError):
            patch.setattr(Epoch, "run", fail)
            asked.finish(generation)
        epoch = cluster.epoch
        again = asked.ask(asked.prompt(0))
        assert len(asked.finish(again)) == N_PROMPT + N_ANSWER and again.answer.finish == "length"
        assert cluster.epoch == epoch
