"""What an answer may be made of: nothing else is drawn, whoever shares its passes, and masks cost no time."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.models import write_random_model
from tests.unit.engine.ranks import N_TOKENS, FakeRanks
from tpi.engine.constraint import Allowed
from tpi.engine.generation import Request
from tpi.engine.language import Language
from tpi.engine.scheduler import Scheduler
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.errors import ConstraintError
from tpi.model.architectures import read_spec
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass

_WAIT_S = 20.0
REQUEST = Request((5, 6, 7), SamplingSettings(seed=1), GenerationSettings(20, raw=True))


class Words:
    """Satisfies ``engine.constraint.Constraint``: the n-th token is one of the n-th words; after the last one all is
    said. None: any."""

    def __init__(self, words: Sequence[Sequence[int] | None], *, is_endless: bool = False) -> None:
        self.words, self.is_endless, self.accepted = words, is_endless, list[int]()

    def mask(self) -> Allowed:
        word = self.words[len(self.accepted) % len(self.words)]
        if word is None:
            return None
        allowed = np.zeros(N_TOKENS, np.bool_)
        allowed[list(word)] = True
        return allowed

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def is_complete(self) -> bool:
        return not self.is_endless and len(self.accepted) == len(self.words)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return Language(write_random_model(Path(tmp_path_factory.mktemp("model")) / "model.gguf"))


def scheduler_of(language: Language, ranks: FakeRanks | None = None) -> tuple[FakeRanks, Scheduler]:
    ranks = ranks or FakeRanks(read_spec(language.gguf, ""))
    return ranks, Scheduler(ranks.as_runner, ranks.table, language.vocabulary)


def finish(scheduler: Scheduler) -> None:
    while not scheduler.is_idle:
        scheduler.step()


def test_an_answer_is_made_of_what_is_allowed(language: Language) -> None:
    """And of nothing after it is complete; others in the same passes are as they were."""
    words = Words([[40, 41], None, range(100, 110), [300]])
    _, scheduler = scheduler_of(language)
    free = scheduler.submit(REQUEST)
    finish(scheduler)
    bound = scheduler.submit(replace(REQUEST, constraint=words))
    beside = scheduler.submit(REQUEST)
    finish(scheduler)
    assert beside.tokens == free.tokens
    first, _, third, last = answer = bound.tokens[3:]
    assert first in (40, 41) and third in range(100, 110) and last == 300
    assert answer == words.accepted and (bound.answer.finish, bound.answer.n_tokens) == ("stop", 4)


def test_a_constraint_lasts_until_there_are_tokens_enough(language: Language) -> None:
    _, scheduler = scheduler_of(language)
    bound = scheduler.submit(replace(REQUEST, constraint=Words([range(50, 90)], is_endless=True)))
    finish(scheduler)
    assert (bound.answer.finish, bound.answer.n_tokens) == ("length", 20)
    assert set(bound.tokens[3:]) <= set(range(50, 90)) and len(set(bound.tokens[3:])) > 3


def test_an_end_is_drawn_only_where_it_is_allowed(language: Language) -> None:
    ends = [token for token in range(N_TOKENS) if language.vocabulary.is_end_of_generation(token)]
    words = Words([[70], ends, [71]])
    _, scheduler = scheduler_of(language)
    bound = scheduler.submit(replace(REQUEST, constraint=words))
    finish(scheduler)
    assert bound.tokens[3:] == [70] and words.accepted[1] in ends and bound.answer.finish == "stop"


def test_a_mask_is_made_while_ranks_compute(language: Language) -> None:
    computing = threading.Event()
    begun = threading.Event()

    class Ranks(FakeRanks):
        def run(self, work: Pass) -> tuple[Row, ...]:
            computing.set()
            assert begun.wait(_WAIT_S), "nobody makes a mask"
            computing.clear()
            begun.clear()
            return super().run(work)

    class Slow(Words):
        def mask(self) -> Allowed:
            assert computing.wait(_WAIT_S), "the ranks wait"
            begun.set()
            return super().mask()

    _, scheduler = scheduler_of(language, Ranks(read_spec(language.gguf, "")))
    bound = scheduler.submit(replace(REQUEST, constraint=Slow([[40], [41], [42]])))
    finish(scheduler)
    assert bound.tokens[3:] == [40, 41, 42]


class Broken(Words):
    def accept(self, token: int) -> None:
        raise ConstraintError("no such rule")


@pytest.mark.parametrize("words", [Words([[]]), Words([[40], []]), Broken([[40]])])
def test_what_cannot_be_kept_to_ends_one_answer(language: Language, words: Words) -> None:
    _, scheduler = scheduler_of(language)
    bound, beside = scheduler.submit(replace(REQUEST, constraint=words)), scheduler.submit(REQUEST)
    finish(scheduler)
    assert bound.answer.finish == "error" and isinstance(bound.error, ConstraintError)
    assert beside.answer.finish == "length"
