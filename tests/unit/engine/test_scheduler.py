"""Many answers at once: each is what it would be alone, whoever comes and goes, on ranks that keep only text."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.models import write_random_model
from tests.unit.engine.ranks import FakeRanks, Stop, kinds, logits_after
from tpi.engine.generation import Generation, Request
from tpi.engine.language import Language
from tpi.engine.sampler import Sampler
from tpi.engine.scheduler import Scheduler
from tpi.engine.sequences import Sequence as Computed
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.errors import BusyError, ContextError, LinkError, UsageError
from tpi.model.architectures import read_spec
from tpi.model.spec import ModelSpec
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return Language(write_random_model(Path(tmp_path_factory.mktemp("model")) / "model.gguf"))


@pytest.fixture(scope="module")
def spec(language: Language) -> ModelSpec:
    return read_spec(language.gguf, "")


def text(number: int, n_tokens: int, n_alike: int = 0) -> list[int]:
    """Tokens of a prompt; the first ``n_alike`` are those of all others."""
    return [3 + (31 * i + (number if i >= n_alike else 0) * 57) % 300 for i in range(n_tokens)]


def request(prompt: Sequence[int], n_tokens: int = 10, seed: int = 7) -> Request:
    return Request(tuple(prompt), SamplingSettings(seed=seed, temperature=1.0), GenerationSettings(n_tokens, raw=True))


def alone(request: Request) -> list[int]:
    """The tokens that a request gets when nobody else asks."""
    sampler, tokens = Sampler(request.sampling), list(request.prompt)
    sampler.accept(tokens)
    while len(tokens) < len(request.prompt) + request.settings.max_tokens:
        tokens.append(sampler.sample(Row(logits_after(tokens))))
        sampler.accept(tokens[-1:])
    return tokens


def scheduler_of(ranks: FakeRanks, language: Language, *, keeps_ended: bool = True, max_waiting: int = 99) -> Scheduler:
    return Scheduler(
        ranks.as_runner, ranks.table, language.vocabulary, keeps_ended=keeps_ended, max_waiting=max_waiting
    )


def finish(scheduler: Scheduler, n_steps: int = 2000) -> None:
    while not scheduler.is_idle:
        scheduler.step()
        n_steps -= 1
        assert n_steps, "it does not end"


@pytest.mark.parametrize("keeps_ended", [True, False])
@pytest.mark.parametrize("kind", kinds())
def test_many_at_once_get_what_each_gets_alone(
    language: Language, spec: ModelSpec, kind: str, keeps_ended: bool
) -> None:
    ranks = FakeRanks(spec, n_cells=320, n_sequences=3, **kinds()[kind])
    scheduler = scheduler_of(ranks, language, keeps_ended=keeps_ended)
    requests = [request(text(i, 5 + 13 * i % 90, 40), 3 + i % 9, i) for i in range(20)]
    generations = []
    for asked in requests:
        generations.append(scheduler.submit(asked))
        scheduler.step()
    finish(scheduler)
    for asked, generation in zip(requests, generations, strict=True):
        assert generation.answer.finish == "length" and generation.tokens == alone(asked)
    assert max(len(work.sampled) for work in ranks.passes) == 3, "they shared passes"


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", kinds())
def test_whoever_comes_and_goes(language: Language, spec: ModelSpec, kind: str, seed: int) -> None:
    """With few cells: some have to make room, and begin anew. Some are stopped, wherever the ranks are in a pass, and
    others go on; or all have to begin anew. Half of the time what many begin with is pinned."""
    dice = Random(seed)
    n_cells = dice.randint(2, 7) * 32
    pinned = text(0, 32 if n_cells < 128 else 64) if seed % 2 else []
    n_free = n_cells - len(pinned)
    n_more = bool(pinned) and kind != "cells"
    ranks = FakeRanks(spec, n_cells=n_cells, n_sequences=dice.randint(1, 4) + n_more, **kinds()[kind])
    ranks.n_context = n_cells - dice.choice([0, 7])
    scheduler = scheduler_of(ranks, language, keeps_ended=dice.random() < 0.7)
    asked: list[tuple[Request, Generation]] = []
    if pinned:
        scheduler.pin(pinned)

    def stop_some(work: Pass) -> Stop:
        places: list[Stop] = ["before", "in the middle", "after"]
        where = dice.choice([*[None] * (20 if seed % 3 else 3), *places])
        if where is not None:
            assert scheduler._under_way is not None
            for generation in scheduler._under_way.generations:
                scheduler.cancel(generation)
            assert ranks.cancelled[-1] == work.pass_id
        return where

    ranks.before_pass = stop_some
    for _ in range(60):
        match dice.choice(
            ["submit", "submit", "go on", "cancel", *["step"] * 8] + ["stop"] * (seed % 4 == 0) + ["pin"] * bool(pinned)
        ):
            case "submit":
                prompt = text(dice.randint(0, 3), dice.randint(1, min(100, n_free - 8)), dice.choice([0, 31, 32, 50]))
                if prompt[: len(pinned)] == pinned and n_free < 64:
                    prompt += pinned[:20]
                new = request(prompt, dice.randint(1, 40), len(asked))
                asked.append((new, scheduler.submit(new)))
            case "go on" if asked:
                prompt = [*dice.choice(asked)[1].tokens, 5][: n_free - 8]
                new = request(prompt, dice.randint(1, 9), len(asked))
                asked.append((new, scheduler.submit(new)))
            case "cancel" if asked:
                scheduler.cancel(dice.choice(asked)[1])
            case "stop":
                ranks.forget()
            case "pin":
                scheduler.pin_again(text(dice.randint(0, 3), dice.randint(1, 70)))
            case _:
                scheduler.step()
    finish(scheduler)
    for sent, generation in asked:
        expected = alone(sent)
        assert generation.tokens == expected[: len(generation.tokens)]
        if generation.answer.finish == "length":
            assert generation.tokens == expected or len(generation.tokens) > n_free - 7
        else:
            assert generation.answer.finish == "cancelled" and generation.is_cancelled
    ranks.before_pass = lambda work: None
    last = scheduler.submit(request([9], 2))
    finish(scheduler)
    assert last.tokens == alone(last.request)
    sequences = scheduler._sequences
    used = [block for block in sequences._pool._blocks.values() if block.n_users]
    assert not sequences._live and sorted(block.first for block in used) == sorted(
        block.first for block in sequences._pinned.blocks
    )
    assert sum(not seat.is_taken for seat in sequences._seats._seats) == ranks.n_sequences - n_more


def test_who_makes_room_with_a_full_context_goes_on_later(language: Language, spec: ModelSpec) -> None:
    """Its tokens are as many as the context has, which no prompt may be."""
    ranks = FakeRanks(spec, n_cells=96, max_tokens=128, n_sequences=2)
    ranks.n_context = 64
    scheduler = scheduler_of(ranks, language)
    first, last = (scheduler.submit(request(text(number, n), 20)) for number, n in ((1, 31), (2, 62)))
    while len(last.tokens) < 64:
        scheduler.step()
    scheduler.step()
    assert last.sequence is None and not last.is_over, "the first one needs its third block"
    finish(scheduler)
    assert [generation.answer.finish for generation in (first, last)] == ["length", "length"]
    assert first.tokens == alone(first.request) and last.tokens == alone(last.request)[:65]


def test_as_many_tokens_as_there_are_cells_can_begin_anew(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec, n_cells=64, max_tokens=128)
    ranks.n_context = 64
    scheduler = scheduler_of(ranks, language)
    generation = scheduler.submit(request(text(1, 62), 20))
    while len(generation.tokens) < 64:
        scheduler.step()
    scheduler._send_back(generation)
    finish(scheduler)
    assert generation.tokens == alone(generation.request)[:65]


@pytest.mark.parametrize("kind", kinds())
def test_what_is_pinned_outlives_a_flood_of_others(language: Language, spec: ModelSpec, kind: str) -> None:
    """And ranks that forget everything; what is not pinned goes, what was used longest ago first."""
    ranks = FakeRanks(spec, n_cells=256, n_sequences=3, **kinds()[kind])
    scheduler = scheduler_of(ranks, language)
    pinned, others = text(0, 100), [text(number, 90) for number in range(1, 12)]
    scheduler.pin(pinned)
    assert scheduler.n_pinned == 96

    def ask(prompt: Sequence[int]) -> int:
        generation = scheduler.submit(request(prompt, 3))
        finish(scheduler)
        assert generation.tokens == alone(generation.request)
        return generation.answer.n_cached_tokens

    for _ in range(2):
        assert ask([*pinned, 7]) == 0
        for other in others:
            assert ask(other) == 0, "it was dropped, or never there"
        assert ask(others[-1]) >= (89 if kind in ("cells", "windows") else 0)
        assert ask([*pinned, 8, 9]) == 96
        ranks.forget()
    together = [scheduler.submit(request([*pinned, number], 20, number)) for number in range(7)]
    finish(scheduler)
    assert [generation.tokens for generation in together] == [alone(generation.request) for generation in together]
    assert max(len(work.sampled) for work in ranks.passes) == (3 if kind == "cells" else 2), (
        "a seat is for what is pinned"
    )


@pytest.mark.parametrize("error", [UsageError("it is too long"), ValueError("a defect")])
def test_a_text_whose_streams_cannot_be_taken_ends_alone(language: Language, spec: ModelSpec, error: Exception) -> None:
    scheduler = scheduler_of(FakeRanks(spec, n_cells=256, n_sequences=2), language)
    starts = list[int]()

    def take(first: int, streams: Float32Array) -> None:
        starts.append(first)
        if first:
            raise error

    answered = scheduler.submit(request(text(0, 20), 9))
    read = scheduler.submit(replace(request(text(1, 100)), is_embedded=True, on_streams=take))
    finish(scheduler)
    assert answered.tokens == alone(answered.request)
    assert read.answer.finish == "error" and str(error) in str(read.error) and len(starts) == 2


@pytest.mark.parametrize("kind", kinds())
def test_what_is_pinned_instead_outlives_others_as_well(language: Language, spec: ModelSpec, kind: str) -> None:
    """As many cells stay reserved, also for a shorter text and one that is longer again."""
    ranks = FakeRanks(spec, n_cells=256, n_sequences=3, **kinds()[kind])
    scheduler = scheduler_of(ranks, language)
    scheduler.pin(text(0, 100))
    for number, length, n_kept in ((0, 100, 96), (1, 70, 64), (2, 130, 96)):
        pinned = text(number, length)
        for _ in range(2):
            scheduler.pin_again(pinned)
            scheduler.submit(request([*pinned, 7], 3))
            finish(scheduler)
        for other in range(11, 22):
            scheduler.submit(request(text(other, 90), 3))
            finish(scheduler)
        again = scheduler.submit(request([*pinned, 8, 9], 3))
        finish(scheduler)
        assert again.tokens == alone(again.request) and again.answer.n_cached_tokens == n_kept
        assert scheduler.pinned == tuple(pinned[:n_kept]) and scheduler.n_pinned == 96
    assert len([block for block in scheduler._sequences._pool._blocks.values() if block.n_users]) == 3


def test_nothing_else_is_pinned_while_somebody_relies_on_it(language: Language, spec: ModelSpec) -> None:
    """Whoever waits for cells, or may still need them."""
    ranks = FakeRanks(spec, n_cells=256, n_sequences=1)
    ranks.n_context = 256
    scheduler = scheduler_of(ranks, language)
    scheduler.pin(pinned := text(0, 160))
    long = [scheduler.submit(request([*pinned, number], 80, number)) for number in range(2)]
    waited = scheduler.submit(request([*pinned, *text(3, 60)], 5))
    for _ in range(40):
        scheduler.pin_again(text(1, 160))
        scheduler.step()
        assert scheduler.pinned == tuple(pinned)
    finish(scheduler)
    assert all(generation.tokens == alone(generation.request) for generation in (*long, waited))
    scheduler.pin_again(text(1, 160))
    finish(scheduler)
    assert scheduler.pinned == tuple(text(1, 160))


def test_what_is_pinned_is_not_there_for_others(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec, n_cells=256)
    ranks.n_context = 256
    scheduler = scheduler_of(ranks, language)
    scheduler.pin(pinned := text(0, 160))
    finish(scheduler)
    longer, other = scheduler.submit(request([*pinned, 5], 200)), scheduler.submit(request(text(1, 50), 200))
    finish(scheduler)
    assert longer.tokens == alone(longer.request)[:257] and other.tokens == alone(other.request)[:97]
    scheduler.submit(request([*pinned, *text(1, 95)], 1))
    with pytest.raises(ContextError, match="has 96 tokens, 1 more than the 95 that fit the context"):
        scheduler.submit(request(text(1, 96), 1))


@pytest.mark.parametrize(
    ("n_tokens", "said"),
    [
        (31, "the chats with it have 31 tokens in common, and blocks of 32 are kept: make it longer"),
        (
            256,
            "its 256 cells leave no room for a sequence in a context of 256: shorten it by 32 tokens or allow",
        ),
    ],
)
def test_what_cannot_be_pinned(language: Language, spec: ModelSpec, n_tokens: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        scheduler_of(FakeRanks(spec), language).pin(text(0, n_tokens))


@pytest.mark.parametrize("kind", kinds())
def test_what_begins_alike_is_computed_once(language: Language, spec: ModelSpec, kind: str) -> None:
    ranks = FakeRanks(spec, n_cells=1024, n_sequences=3, max_tokens=64, **kinds()[kind])
    scheduler = scheduler_of(ranks, language)
    first = scheduler.submit(request(text(0, 200)))
    finish(scheduler)
    second = scheduler.submit(request([*first.tokens, 9, 8, 7]))
    others = [scheduler.submit(request(text(number, 230, 200))) for number in (1, 2)]
    finish(scheduler)
    assert second.answer.n_cached_tokens == len(first.tokens) - 1
    if kind == "cells":
        assert [other.answer.n_cached_tokens for other in others] == [200, 200]


def test_a_reader_lets_others_go_on(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec, n_cells=1024, max_tokens=64)
    scheduler = scheduler_of(ranks, language)
    talker = scheduler.submit(request(text(0, 5), 200))
    for _ in range(5):
        scheduler.step()
    scheduler.submit(request(text(1, 600), 2))
    n_before = len(talker.tokens)
    for number in range(10):
        scheduler.step()
        assert len(talker.tokens) == n_before + number + 1
        assert ranks.passes[-1].n_tokens > 1


def test_too_many_are_refused(language: Language, spec: ModelSpec) -> None:
    scheduler = scheduler_of(FakeRanks(spec), language, max_waiting=2)
    waiting = [scheduler.submit(request(text(0, 5))) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests wait already"):
        scheduler.submit(request(text(0, 5)))
    scheduler.cancel(waiting[0])  # has no place any more, though nothing has let it go yet
    scheduler.submit(request(text(0, 5)))
    with pytest.raises(UsageError, match="the prompt has 249 tokens, 1 more than the 248 that fit"):
        scheduler.submit(request(text(0, 249)))


def test_a_loss_ends_all(language: Language, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = FakeRanks(spec, n_sequences=1)
    scheduler = scheduler_of(ranks, language)
    generations = [scheduler.submit(request(text(0, 5))) for _ in range(3)]
    scheduler.step()
    error = LinkError("attic (rank 1) is gone")

    def fail(work: Pass) -> tuple[Row, ...]:
        raise error

    monkeypatch.setattr(ranks, "run", fail)
    with pytest.raises(LinkError, match="attic"):
        scheduler.step()
    assert [(generation.answer.finish, generation.error) for generation in generations] == [("error", error)] * 3
    assert scheduler.is_idle


def test_a_pass_ends_when_nobody_wants_it(language: Language, spec: ModelSpec) -> None:
    """Of two who share it one may leave; the other goes on, and leaves its cells to whoever comes."""
    ranks = FakeRanks(spec, max_tokens=64)
    scheduler = scheduler_of(ranks, language)
    asked = [request(text(number, 40), 20, number) for number in range(2)]
    one, other = (scheduler.submit(entry) for entry in asked)
    for _ in range(8):
        scheduler.step()

    def leave(generation: Generation, stop: Stop) -> None:
        def at_a_pass(work: Pass) -> Stop:
            scheduler.cancel(generation)
            return stop

        ranks.before_pass = at_a_pass
        scheduler.step()
        ranks.before_pass = lambda work: None

    leave(one, None)
    assert one.answer.finish == "cancelled" and not ranks.cancelled
    scheduler.step()
    n_tokens = len(other.tokens)
    leave(other, "in the middle")
    assert ranks.cancelled == [ranks.passes[-1].pass_id]
    assert other.answer.finish == "cancelled" and other.tokens == alone(asked[1])[:n_tokens]
    more = replace(asked[1], prompt=tuple(other.tokens))
    again = scheduler.submit(more)
    finish(scheduler)
    assert again.answer.n_cached_tokens == n_tokens - 1 and again.tokens == alone(more)


def test_a_pass_that_is_stopped_from_outside_ends_all(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec)
    scheduler = scheduler_of(ranks, language)
    generations = [scheduler.submit(request(text(number, 40), 20, number)) for number in range(2)]
    ranks.before_pass = lambda work: "before"
    scheduler.step()
    assert [generation.answer.finish for generation in generations] == ["cancelled"] * 2


def test_a_pass_that_nobody_wants_does_not_begin(language: Language, spec: ModelSpec) -> None:
    """Its last caller leaves while it is being put together."""
    ranks = FakeRanks(spec)
    scheduler = scheduler_of(ranks, language)
    generation = scheduler.submit(request(text(0, 40)))
    make_room = scheduler._sequences.make_room

    def leave(sequence: Computed, n_tokens: int) -> int:
        scheduler.cancel(generation)
        return make_room(sequence, n_tokens)

    scheduler._sequences.make_room = leave  # type: ignore[method-assign]
    number = scheduler._passes.next_pass
    scheduler.step()
    assert generation.answer.finish == "cancelled" and not ranks.passes
    scheduler._sequences.make_room = make_room  # type: ignore[method-assign]
    scheduler.submit(request(text(1, 40)))
    scheduler.step()
    assert [work.pass_id for work in ranks.passes] == [number + 1], "who was about to stop that pass stops no other"


@pytest.mark.parametrize("kind", kinds())
def test_what_is_said_to_be_common_is_kept(language: Language, spec: ModelSpec, kind: str) -> None:
    """A second caller with the same instructions need not wait until two have been seen to begin alike."""
    ranks = FakeRanks(spec, n_cells=1024, max_tokens=64, **kinds()[kind])
    scheduler = scheduler_of(ranks, language)
    for number, n_cached in enumerate([0, 150, 150]):
        asked = replace(request(text(number, 190, 150)), marks=(150,))
        generation = scheduler.submit(asked)
        finish(scheduler)
        assert generation.tokens == alone(asked)
        if not kind.startswith("windows"):
            assert generation.answer.n_cached_tokens == n_cached


@pytest.mark.parametrize("kind", kinds())
def test_who_comes_together_is_read_together(language: Language, spec: ModelSpec, kind: str) -> None:
    """Several answers of one prompt, and another that begins alike: what they have in common is computed once."""
    ranks = FakeRanks(spec, n_cells=1024, max_tokens=64, n_sequences=5, **kinds()[kind])
    scheduler = scheduler_of(ranks, language)
    asked = [request(text(0, 200), 10, seed) for seed in range(3)]
    asked += [request(text(1, 230, 150), 10), request(text(2, 40), 10)]
    generations = [scheduler.submit(entry) for entry in asked]
    scheduler.step()
    assert scheduler.load.n_running == 2, "nobody waits who has nothing in common with others"
    finish(scheduler)
    assert [generation.tokens for generation in generations] == [alone(entry) for entry in asked]
    cached = [generation.answer.n_cached_tokens for generation in generations]
    assert cached[0] == cached[4] == 0 and cached[1] == cached[2] == 199
    assert cached[3] == 150 or kind.startswith("windows")


def test_copies_of_a_pass_that_was_stopped_take_no_room_from_others(language: Language, spec: ModelSpec) -> None:
    """They wait for the next pass, and hold blocks behind others that nobody uses."""
    ranks = FakeRanks(spec, n_cells=256, max_tokens=64, n_sequences=2)
    scheduler = scheduler_of(ranks, language)
    for prompt in (text(1, 116), text(2, 84)):
        scheduler.submit(request(prompt, 1))
        finish(scheduler)
    stopped = scheduler.submit(request([*text(1, 106), *text(3, 6)]))

    def leave(work: Pass) -> Stop:
        scheduler.cancel(stopped)
        return "before"

    ranks.before_pass = leave
    scheduler.step()
    ranks.before_pass = lambda work: None
    assert stopped.answer.finish == "cancelled" and ranks.cancelled
    asked = request([*text(2, 70), *text(4, 5)])
    answered = scheduler.submit(asked)
    finish(scheduler)
    assert answered.tokens == alone(asked)


def test_answers_that_have_just_begun_wait_for_those_that_came_with_them(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec, n_cells=640, max_tokens=256, n_sequences=8)
    scheduler = scheduler_of(ranks, language)
    scheduler.submit(request(text(0, 20)))
    scheduler.step()
    for number in range(1, 8):
        scheduler.submit(request(text(number, 20)))
    scheduler.step()
    assert ranks.passes[-1].n_tokens == 1 + 7 * 20
    for _ in range(4):
        scheduler.step()  # all go on: those that come now have to share
    scheduler.cancel(next(iter(scheduler._running)))
    scheduler.submit(request(text(9, 300)))
    scheduler.step()
    assert ranks.passes[-1].n_tokens < 100


def test_news_is_told_while_the_next_pass_is_computed(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec, max_tokens=32)
    scheduler, told = scheduler_of(ranks, language), list[int]()
    generation = scheduler.submit(request(text(0, 20), 3), lambda: told.append(len(ranks.passes)))
    seen: list[int] = []

    def look(work: Pass) -> Stop:
        seen.append(len(told))
        return None

    ranks.before_pass = look
    scheduler.step()
    assert generation.answer.n_tokens == 1 and not told
    finish(scheduler)
    assert seen == [0, 1, 2] and len(told) == 3  # the last at once: there is no other pass


def test_how_long_each_waits_for_a_place(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec, n_sequences=1)
    scheduler = scheduler_of(ranks, language)
    first, second = (scheduler.submit(request(text(number, 20), 5)) for number in range(2))
    finish(scheduler)
    assert 0 < first.answer.queue_s < first.answer.time_to_first_token_s
    assert second.answer.queue_s > first.answer.time_to_first_token_s + first.answer.decode_s


def test_a_crowd_that_is_expected_begins_together(language: Language, spec: ModelSpec) -> None:
    ranks = FakeRanks(spec, n_cells=320, max_tokens=256)
    scheduler, is_open = scheduler_of(ranks, language), threading.Event()

    def submit_late() -> None:
        with scheduler.expected():
            is_open.set()
            time.sleep(0.01)
            scheduler.submit(request(text(1, 20)))

    scheduler.submit(request(text(0, 20)))
    thread = threading.Thread(target=submit_late)
    thread.start()
    is_open.wait()
    started_s = time.monotonic()
    scheduler.gather()
    assert time.monotonic() - started_s < 1
    scheduler.step()
    thread.join()
    assert ranks.passes[-1].n_tokens == 40
    with scheduler.expected():
        scheduler.gather()  # somebody is answered: nobody waits
    finish(scheduler)
    with scheduler.expected():
        scheduler.gather()  # for a moment only
