"""Generation with a runner that has no ranks: what it is asked for can be asked of workers, and is enough."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from tests.models import write_random_model
from tpi.cluster.mesh.frames import FrameBuffer
from tpi.cluster.mesh.passframes import PassLimits, pack_pass, pass_capacity, unpack_pass
from tpi.engine.chat import ChatTemplate
from tpi.engine.chatprompt import Prompt
from tpi.engine.engine import Engine
from tpi.engine.generation import Answer, Delta
from tpi.engine.language import Language
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.turns import ChatAsk, Message
from tpi.errors import Cancelled, ContextError, LinkError
from tpi.model.architectures import blocks_of, read_spec
from tpi.runtime.logits import Row, extract, join
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankSettings
from tpi.runtime.retention import Retention

N_CELLS, MAX_TOKENS = 64, 8
PROMPT = [1, 5, 9, 300]
Logits = Callable[[int], Float32Array]
"""Of the row at a position."""


def peaked(position: int) -> Float32Array:
    """As models give them; the tokens that end an answer are unlikely."""
    logits = np.random.default_rng(position).normal(scale=4, size=320).astype(np.float32)
    logits[:3] = -30
    return logits


def flat(position: int) -> Float32Array:
    return peaked(position) / np.float32(1000)


class FakeRunner:
    """Gives rows by ``logits``: whole ones, or those that ``n_slices`` ranks give. Passes go over the wire."""

    def __init__(self, language: Language, logits: Logits = peaked, n_slices: int = 0, n_cells: int = N_CELLS) -> None:
        self.spec = read_spec(language.gguf, "")
        self.n_cells, self.max_tokens, self.n_forgotten, self.is_staged = n_cells, MAX_TOKENS, 1, False
        self.is_reproducible = False
        self.n_context, self.max_sampled, self.n_sequences = n_cells, 8, 1
        self.passes: list[Pass] = []
        self.n_rests = 0
        self.before_pass: Callable[[int], None] = lambda number: None
        self._logits, self._n_slices = logits, n_slices
        self._limits = PassLimits(MAX_TOKENS, n_cells, 8, self.spec.n_vocab, self.spec.n_embd)
        self._last: list[Float32Array] = []

    @property
    def retention(self) -> Retention:
        return Retention(blocks_of(self.spec), RankSettings(MAX_TOKENS, self.n_cells, 1))

    def check_alive(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def cancel(self, pass_id: int) -> None:
        pass

    def run(self, work: Pass) -> tuple[Row, ...]:
        self.before_pass(len(self.passes))
        buffer = FrameBuffer(pass_capacity(MAX_TOKENS, self.n_cells, self.spec.n_embd))
        there = unpack_pass(work.pass_id, buffer.payload[: pack_pass(work, buffer, True)], self._limits)
        assert there is not None
        self.passes.append(there)
        self._last = [self._logits(int(work.positions[row])) for row in there.sampled]
        if there.wanted.is_all or not self._n_slices:
            return tuple(Row(logits[: there.wanted.n_tokens or None]) for logits in self._last)
        return tuple(self._join(logits, there) for logits in self._last)

    def _join(self, logits: Float32Array, work: Pass) -> Row:
        size = -(-logits.size // self._n_slices)
        starts = range(0, logits.size, size)
        return join([extract(logits[start : start + size], start, work.wanted) for start in starts], work.wanted)

    def rest(self) -> tuple[Row, ...]:
        self.n_rests += 1
        return tuple(Row(logits[: self.passes[-1].wanted.n_tokens or None]) for logits in self._last)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return Language(write_random_model(Path(tmp_path_factory.mktemp("model")) / "model.gguf"))


def test_what_is_pinned_follows_the_date(language: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a template tells it. Chats that begin otherwise for other reasons change nothing."""
    now, system = [datetime(2026, 1, 31)], Message("system", "w1 w2 w3 w4 " * 9)
    source = "{{ strftime_now('w%d ') * 9 }}{% for message in messages %}{{ message.content }} {% endfor %}"
    template = ChatTemplate(source, clock=lambda: now[0])
    monkeypatch.setattr(language, "template", template)
    chat = ChatAsk((system, Message("user", "w9 " * 9)))
    with Engine(FakeRunner(language, n_cells=512), language) as engine:
        engine.pin(system.content)

        def n_cached(ask: ChatAsk) -> int:
            prompt = engine.chat_prompt(ask)
            generation = engine.ask(prompt, SamplingSettings(), GenerationSettings(1))
            for _ in engine.follow(generation):
                pass
            return generation.answer.n_cached_tokens

        pinned = engine.scheduler.pinned
        for day in (31, 1, 2):
            now[0] = datetime(2026, 1, day)
            n_cached(chat)
            assert (engine.scheduler.pinned == pinned) == (day == 31)
            pinned = engine.scheduler.pinned
            n_cached(replace(chat, messages=chat.messages[1:]))
            assert n_cached(chat) >= len(pinned) >= 32 and engine.scheduler.pinned == pinned


def answer(
    language: Language, runner: FakeRunner, sampling: SamplingSettings | None = None, max_tokens: int = 12
) -> tuple[str, Answer]:
    sampling = sampling or SamplingSettings(temperature=1.0, seed=7)
    with Engine(runner, language) as engine:
        generation = engine.ask(Prompt(tuple(PROMPT)), sampling, GenerationSettings(max_tokens, raw=True))
        text = "".join(delta.text for delta in engine.follow(generation))
        assert text == generation.answer.text
        return text, generation.answer


def ask(engine: Engine, prompt: Sequence[int], settings: GenerationSettings, seed: int = 7) -> Answer:
    generation = engine.ask(Prompt(tuple(prompt)), SamplingSettings(seed=seed), settings)
    list(engine.follow(generation))
    return generation.answer


MANNERS = [
    SamplingSettings(temperature=0),
    SamplingSettings(temperature=1.0, seed=7),
    SamplingSettings(temperature=1.0, seed=7, repetition_penalty=1.3),
    SamplingSettings(temperature=1.0, seed=7, top_k=0),
    SamplingSettings(temperature=1.0, seed=7, top_k=0, top_p=1.0, min_p=0.0),
    SamplingSettings(temperature=1.0, seed=7, top_k=0, repetition_penalty=1.3),
    SamplingSettings(temperature=1.0, seed=7, top_k=1_000_000_000),
    SamplingSettings(temperature=1.0, seed=7, top_k=320, repetition_penalty=1.3),
]


@pytest.mark.parametrize("sampling", MANNERS)
@pytest.mark.parametrize("logits", [peaked, flat])
def test_parts_of_rows_give_the_answer_of_whole_ones(
    language: Language, sampling: SamplingSettings, logits: Logits
) -> None:
    """Whatever is wanted can also be asked for: more tokens than there are included."""
    whole = answer(language, FakeRunner(language, logits), sampling)
    assert whole[1].n_tokens == 12 and whole[1].finish == "length"
    for n_slices in (1, 3):
        runner = FakeRunner(language, logits, n_slices)
        text, last = answer(language, runner, sampling)
        assert (text, last.n_tokens, last.finish) == (whole[0], 12, "length")
        assert runner.n_rests <= 12
        assert all(work.wanted.n_best <= 320 and work.wanted.n_tokens == 320 for work in runner.passes)


def test_a_row_that_a_part_does_not_decide_is_fetched(language: Language) -> None:
    sampling = SamplingSettings(temperature=1.0, seed=7, top_k=0, top_p=0.9, min_p=0.0)
    runner = FakeRunner(language, flat, 1)
    answer(language, runner, sampling)
    assert runner.n_rests == 12
    peak = FakeRunner(language, peaked, 1)
    answer(language, peak, sampling)
    assert peak.n_rests == 0


def test_passes_of_a_prompt_sample_its_last_token_only(language: Language) -> None:
    runner = FakeRunner(language)
    with Engine(runner, language) as engine:
        ask(engine, list(range(10, 30)), GenerationSettings(2, raw=True))
    assert [work.n_tokens for work in runner.passes] == [8, 8, 4, 1]
    assert [work.sampled.tolist() for work in runner.passes] == [[], [], [3], [0]]


def test_a_pass_that_is_stopped_ends_the_answer_and_no_more(language: Language) -> None:
    runner = FakeRunner(language)

    def stop(number: int) -> None:
        if number == 5:
            runner.n_forgotten += 1
            raise Cancelled("the pass was stopped")

    runner.before_pass = stop
    with Engine(runner, language) as engine:
        settings = GenerationSettings(20, raw=True)
        stopped = ask(engine, PROMPT, settings)
        assert (stopped.finish, stopped.n_tokens) == ("cancelled", 5)
        runner.before_pass = lambda number: None
        again = ask(engine, PROMPT, settings)
        assert again.n_cached_tokens == 0, "the ranks have forgotten what they computed"
        assert (again.finish, again.n_tokens) == ("length", 20)
        assert ask(engine, PROMPT, settings).n_cached_tokens == len(PROMPT) - 1


def test_a_worker_that_is_lost_is_an_error(language: Language) -> None:
    runner = FakeRunner(language)

    def lose(number: int) -> None:
        if number == 3:
            raise LinkError("attic (rank 1) is gone")

    runner.before_pass = lose
    with pytest.raises(LinkError, match="attic"):
        answer(language, runner)


def test_rows_that_are_no_tokens_are_never_drawn(language: Language) -> None:
    """Some models have more rows than their tokenizer has words."""
    runner = FakeRunner(language, lambda position: np.arange(320, dtype=np.float32), 3)
    with Engine(runner, language) as engine:
        engine.scheduler._n_tokens = 300
        generation = engine.ask(Prompt(tuple(PROMPT)), MANNERS[0], GenerationSettings(3, raw=True))
        list(engine.follow(generation))
        assert [work.wanted.n_tokens for work in runner.passes] == [300] * 3
        assert generation.tokens[-1] == 299


def test_whoever_reads_slowly_reads_all(language: Language) -> None:
    """The answer is over while its first words are being read."""
    sampling, settings = SamplingSettings(temperature=0), GenerationSettings(12, raw=True)
    with Engine(FakeRunner(language), language) as engine:
        engine.drive(lambda error: None)
        generation = engine.ask(Prompt(tuple(PROMPT)), sampling, settings)
        read = ""
        for delta in engine.follow(generation):
            while not generation.is_over:
                generation.wait(0.1)
            read += delta.text
    assert read == generation.answer.text != ""


def test_an_answer_is_over_when_all_of_it_can_be_taken(language: Language) -> None:
    settings = GenerationSettings(12, raw=True)
    with Engine(FakeRunner(language), language) as engine:
        generation = engine.ask(Prompt(tuple(PROMPT)), SamplingSettings(temperature=0), settings)
        was_over: list[bool] = []
        deltas = _Watched(lambda: was_over.append(generation.is_over))
        generation._deltas = deltas
        list(engine.follow(generation))
    assert was_over and not any(was_over)


class _Watched(deque[Delta]):
    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look

    def append(self, delta: Delta) -> None:
        self._look()
        super().append(delta)


def test_what_cannot_fit_is_not_read(language: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes; what might fit is read, and then it is known."""
    with Engine(FakeRunner(language), language) as engine:
        longest = engine.vocabulary.longest_bytes
        assert longest == max(len(language.vocabulary.token_bytes(n, special=True)) for n in range(260))
        most = engine.n_context - 1
        engine.check_bytes("x" * (max(longest, 16) * most))
        with monkeypatch.context() as patch:
            patch.setattr(engine.vocabulary, "tokenize", None)
            n_bytes = max(longest, 16) * most + 1
            with pytest.raises(ContextError, match=f"the prompt has {n_bytes:,} bytes") as caught:
                engine.raw_prompt("x" * n_bytes)
            assert caught.value.n_over == -(-n_bytes // longest) - most
            with pytest.raises(ContextError):
                engine.chat_prompt(ChatAsk((Message("user", "x" * n_bytes),)))
        assert len(engine.chat_prompt(ChatAsk((Message("user", "x" * n_bytes),)), is_asked=False).tokens) > most
