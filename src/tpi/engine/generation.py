"""One request and its answer on the way: what is asked, the tokens so far, how the next is drawn, and the text.

The scheduler's thread writes; whoever asked reads ``answer`` and takes deltas, from any thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from tpi.engine.constraint import Constraint, Masks
from tpi.engine.dry import Breakers
from tpi.engine.sampler import Sampler
from tpi.engine.sequences import Sequence as Computed
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.text import AnswerText
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import ConstraintError, TpiError
from tpi.runtime.logits import Row, Wanted, highest, log_sum_exp
from tpi.runtime.protocols import Float32Array

Finish: TypeAlias = Literal["", "stop", "length", "cancelled", "error"]
"""Why an answer ended: the model or a stop string said so, a limit was reached, whoever asked wanted no more, or it
could not go on; empty: it has not."""

OnStreams: TypeAlias = Callable[[int, Float32Array], None]


@dataclass(frozen=True)
class Request:
    """What is asked: the prompt's tokens, how to draw, and when to stop; ``stops`` are strings that end it beside those
    of the settings; after ``marks`` tokens of the prompt others are expected to go on. ``constraint``, of this
    request alone: which tokens the answer may have. ``is_embedded``: no answer is wanted, but the residual stream after
    the last token. ``is_begun``: the answer goes on with words of the prompt, and may begin with white space."""

    prompt: tuple[int, ...]
    sampling: SamplingSettings
    settings: GenerationSettings
    stops: tuple[str, ...] = ()
    marks: tuple[int, ...] = ()
    constraint: Constraint | None = None
    is_embedded: bool = False
    on_streams: OnStreams | None = None
    """Told, by the scheduler's thread, of the residual stream after every token of the prompt, as it is computed: the
    first one's position, and f32 [n, n_embd]; from 0 on again if the prompt has to be read anew."""
    shown: frozenset[int] = frozenset()
    """Special tokens that are part of the text."""
    is_begun: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was drawn, the logarithm of its probability as the model gave it, before any setting, and those of
    the most probable tokens, the highest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    start: int = 0
    """Whole characters of the answer that come before it."""


@dataclass(frozen=True)
class Delta:
    """The next words of an answer; ``n_tokens`` is how many tokens the answer has so far. ``logprobs``: of the tokens
    of which these are the words, if they were asked for; none of a token of a stop string."""

    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What is known of an answer. ``n_cached_tokens`` of the prompt were in the KV cache already."""

    text: str = ""
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_tokens: int = 0
    time_to_first_token_s: float = 0.0
    decode_s: float = 0.0
    """From the first token to the last."""
    finish: Finish = ""
    seed: int = 0
    stopped_by: str = ""
    """The stop string that ended it, if one did."""
    queue_s: float = 0.0
    """From the request until it got a place."""
    slot: int = 0
    """The number of the seat at which it was computed last."""


class Generation:
    """From request to answer."""

    def __init__(
        self,
        request: Request,
        vocabulary: Vocabulary,
        n_tokens: int,
        notify: Callable[[], None],
        helper: Executor,
        breakers: Breakers,
    ) -> None:
        """Tokens from ``n_tokens`` on are none. ``notify`` is told by the scheduler's thread that there is news; masks
        are made by the ``helper``; ``breakers`` are those of the request's settings, as tokens."""
        self.request, self._vocabulary, self._n_known = request, vocabulary, n_tokens
        self._sampler = Sampler(request.sampling, breakers)
        self._sampler.accept(request.prompt)
        self._helper = helper
        self._masks: Masks | None = None
        settings = request.settings
        strips_start = not (settings.raw or request.is_begun)
        self._text = AnswerText((*settings.stop, *request.stops), strips_start=strips_start)
        self._deltas: deque[Delta] = deque()
        self._untold: deque[TokenLogprob] = deque()
        """Of tokens that may turn out to be a stop string's, or whose characters are not whole yet."""
        self._notify, self._news = notify, threading.Event()
        self._started_s = time.perf_counter()
        self._first_s = 0.0
        self.tokens = list(request.prompt)
        """Of prompt and answer."""
        self.sequence: Computed | None = None
        """Its place in what ranks keep, while it has one."""
        self.is_cancelled = False
        self.error: TpiError | None = None
        self.stream: Float32Array | None = None
        """After the prompt's last token, f32 [n_embd], if that was asked for."""
        self.answer = Answer(n_prompt_tokens=len(request.prompt), seed=self._sampler.seed)

    @property
    def is_over(self) -> bool:
        return bool(self.answer.finish)

    @property
    def n_pending(self) -> int:
        """Tokens that are to be computed before the next can be drawn."""
        return len(self.tokens) - (len(self.sequence.tokens) if self.sequence is not None else 0)

    @property
    def is_decoding(self) -> bool:
        """All but the token that was drawn last are computed."""
        return self.n_pending == 1

    @property
    def is_each_wanted(self) -> bool:
        """Of every row something is wanted, not of the last alone."""
        return self.request.on_streams is not None

    @property
    def wanted(self) -> Wanted:
        """What drawing the next token needs of its row."""
        if self.request.is_embedded:
            return Wanted(1, n_tokens=self._n_known, is_streamed=True)
        is_masked, n_logprobs = self.request.constraint is not None, self.request.settings.n_logprobs
        wanted = self._sampler.wanted(is_masked=is_masked)
        n_best = wanted.n_best if wanted.is_all else min(max(wanted.n_best, n_logprobs or 0), self._n_known)
        is_exact = wanted.is_exact or n_logprobs is not None
        return replace(wanted, n_best=n_best, is_exact=is_exact, n_tokens=self._n_known)

    def pending(self, n_tokens: int) -> Sequence[int]:
        """The next of them."""
        start = len(self.tokens) - self.n_pending
        return self.tokens[start : start + n_tokens]

    def begin(self, sequence: Computed) -> None:
        """It has got its place: its tokens will be computed, and its first mask."""
        if self.sequence is None and not self.answer.n_tokens:
            self.answer = replace(self.answer, n_cached_tokens=sequence.n_cached)
        queue_s = self.answer.queue_s or time.perf_counter() - self._started_s
        self.answer = replace(self.answer, slot=sequence.number, queue_s=queue_s)
        self.sequence = sequence
        if self._masks is None and self.request.constraint is not None:
            self._masks = Masks(self.request.constraint, self._helper)

    def draw(self, row: Row, rest: Callable[[], Row], n_room: int) -> None:
        """Draws the next token from its row, or where that is not enough from ``rest``. After ``n_room`` more tokens
        there is no room for another.

        Raises:
            NumericError: see ``Sampler.sample``.
        """
        if self.request.is_embedded:
            self.stream = row.stream
            self.end("stop")
            return
        try:
            token, row = self._choose(row, rest)
            is_complete = self._masks is not None and self._masks.accept(token)
        except ConstraintError as error:
            self.end("error", error)
            return
        now_s = time.perf_counter()
        self._first_s = self._first_s or now_s
        n_tokens, words = self.answer.n_tokens, ""
        finish: Finish
        if self._vocabulary.is_end_of_generation(token):
            finish = "stop"
        else:
            n_tokens += 1
            self._untold += self._logprobs(token, row)
            self.tokens.append(token)
            self._sampler.accept([token])
            words = self._text.push(self._vocabulary.token_bytes(token, special=token in self.request.shown))
            is_full = n_tokens >= self.request.settings.max_tokens or n_room < 1
            finish = "stop" if self._text.has_stopped or is_complete else "length" if is_full else ""
        if finish:
            words += self._text.end()
        logprobs = self._told_logprobs(is_last=bool(finish))
        if words or logprobs:  # before the answer says that it is over: whoever reads that takes the rest
            self._deltas.append(Delta(words, n_tokens, logprobs))
        self.answer = replace(
            self.answer,
            text=str(self._text),
            n_tokens=n_tokens,
            time_to_first_token_s=self._first_s - self._started_s,
            decode_s=now_s - self._first_s,
            finish=finish,
            stopped_by=self._text.matched or "",
        )
        if words or logprobs or finish:
            self._tell()

    def take_streams(self, rows: Sequence[Row]) -> None:
        """The residual streams of the prompt's next tokens, which are computed; with the last it is complete. If what
        is told of them fails, this answer ends and no other does."""
        assert self.sequence is not None and self.request.on_streams is not None
        streams = np.stack([row.stream for row in rows if row.stream is not None])
        try:
            self.request.on_streams(len(self.sequence.tokens) - len(rows), streams)
        except Exception as error:
            told = f"a defect of tpi ended the reading of the text: {error!r}"
            self.end("error", error if isinstance(error, TpiError) else TpiError(told))
        if not self.n_pending:
            self.end("stop")

    def _choose(self, row: Row, rest: Callable[[], Row]) -> tuple[int, Row]:
        """The next token, and the row that it was drawn from."""
        allowed = None if self._masks is None else self._masks.wait()
        token = self._sampler.try_sample(row, allowed)
        if token is None:
            row = rest()
            token = self._sampler.sample(row, allowed)
        return token, row

    def _logprobs(self, token: int, row: Row) -> tuple[TokenLogprob, ...]:
        n_top = self.request.settings.n_logprobs
        if n_top is None:
            return ()
        total = log_sum_exp(row.values) if row.ids is None else row.log_sum_exp
        best = highest(row.values, n_top) if n_top else np.empty(0, np.int64)
        best = best[np.argsort(-row.values[best], kind="stable")]
        ids = best if row.ids is None else row.ids[best]
        top = tuple((int(other), float(row.values[place]) - total) for other, place in zip(ids, best, strict=True))
        place = token if row.ids is None else int(np.searchsorted(row.ids, token))
        return (TokenLogprob(token, float(row.values[place]) - total, top, self._text.n_come),)

    def _told_logprobs(self, *, is_last: bool) -> tuple[TokenLogprob, ...]:
        """Of tokens that begin in what is shown; at the end of all, but of a stop string's."""
        told, is_all = list[TokenLogprob](), is_last and not self._text.has_stopped
        while self._untold and (is_all or self._untold[0].start < self._text.n_told):
            told.append(self._untold.popleft())
        return tuple(told)

    def end(self, finish: Finish, error: TpiError | None = None) -> None:
        """Nothing more comes."""
        if not self.is_over:
            self.error, self.answer = error, replace(self.answer, finish=finish)
            self._tell()

    def wait(self, timeout_s: float) -> None:
        """Waits until there is news, and no longer."""
        self._news.wait(timeout_s)

    def _tell(self) -> None:
        self._news.set()
        self._notify()

    def take(self) -> list[Delta]:
        """The deltas that have come since the last time; if the answer was over before, all that come."""
        self._news.clear()
        taken = list[Delta]()
        while self._deltas:
            taken.append(self._deltas.popleft())
        return taken
