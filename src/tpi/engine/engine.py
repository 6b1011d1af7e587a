"""Answers prompts: schedule a pass, run it, sample, emit. The loop of the master.

Owns the embedding table; cluster and language belong to the caller. One answer at a time, in the caller's thread;
``cancel`` may be set from any.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias

from tpi.engine.chat import Message
from tpi.engine.detokenizer import Detokenizer
from tpi.engine.language import Language
from tpi.engine.prompt import encode_chat, encode_raw
from tpi.engine.sampler import Sampler
from tpi.engine.sequence import PassRunner, TokenSequence
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.stops import StopMatcher
from tpi.errors import Cancelled
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.logits import Row, Wanted

Finish: TypeAlias = Literal["stop", "length", "cancelled"]
"""Why an answer ended: the model or a stop string said so, a limit was reached, or the user stopped it."""


@dataclass(frozen=True)
class Delta:
    """The next words of an answer; ``n_tokens`` is how many tokens the answer has so far."""

    text: str
    n_tokens: int


@dataclass(frozen=True)
class Answer:
    """What is known of an answer once it has ended. ``n_cached_tokens`` of the prompt were in the KV cache already."""

    text: str = ""
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_tokens: int = 0
    time_to_first_token_s: float = 0.0
    decode_s: float = 0.0
    """From the first token to the last."""
    finish: Finish = "cancelled"
    seed: int = 0


class Engine:
    """Generates text with a cluster. A context manager; ``close`` is idempotent."""

    def __init__(self, runner: PassRunner, language: Language) -> None:
        """``runner`` computes with the model of ``language``.

        Raises:
            ModelFileError, UnsupportedModelError: the embedding table cannot be read.
        """
        self._stack = ExitStack()
        self.vocabulary, self.template = language.vocabulary, language.template
        self._sequence = TokenSequence(runner, self._stack.enter_context(EmbeddingTable(language.gguf, runner.spec)))
        self._n_tokens = min(self.vocabulary.n_tokens, runner.spec.n_vocab)
        self.last = Answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat, ready for the assistant's turn; raises as ``prompt.encode_chat``."""
        return encode_chat(self.vocabulary, self.template, messages)

    def raw_prompt(self, text: str) -> list[int]:
        """The tokens of a text that is taken as it is."""
        return encode_raw(self.vocabulary, text)

    def generate(
        self,
        prompt: Sequence[int],
        sampling: SamplingSettings,
        settings: GenerationSettings,
        cancel: threading.Event | None = None,
    ) -> Iterator[Delta]:
        """Yields the answer as it grows; afterwards ``last`` describes it. ``cancel`` ends it before the next pass; a
        pass that is stopped meanwhile ends it, too.

        Raises:
            UsageError: the prompt does not fit the context.
            NumericError, LinkError, KernelError, ModelFileError: a pass failed.
        """
        with contextlib.suppress(Cancelled):
            yield from self._generate(prompt, sampling, settings, cancel)

    def _generate(
        self,
        prompt: Sequence[int],
        sampling: SamplingSettings,
        settings: GenerationSettings,
        cancel: threading.Event | None,
    ) -> Iterator[Delta]:
        started = time.perf_counter()
        sampler, detokenizer = Sampler(sampling), Detokenizer()
        stops = StopMatcher((*settings.stop, *(() if settings.raw else self.template.stop)))
        n_cached = self._sequence.keep_prefix(prompt)
        self.last = Answer(n_prompt_tokens=len(prompt), n_cached_tokens=n_cached, seed=sampler.seed)
        sampler.accept(prompt)
        row: Row | None = None
        for result in self._sequence.prefill(prompt[n_cached:], self._wanted(sampler)):
            row = result
            if cancel is not None and cancel.is_set():
                return
        n_tokens, text = 0, ""
        finish: Finish | Literal[""]
        first_at = last_at = 0.0
        is_opening = not settings.raw
        while row is not None:
            token = sampler.try_sample(row)
            if token is None:
                token = sampler.sample(self._sequence.rest())
            last_at = time.perf_counter()
            first_at = first_at or last_at
            if self.vocabulary.is_end_of_generation(token):
                finish = "stop"
            else:
                n_tokens += 1
                sampler.accept([token])
                words = stops.push(detokenizer.push(self.vocabulary.token_bytes(token)))
                is_full = n_tokens >= settings.max_tokens or not self._sequence.n_free
                finish = "stop" if stops.matched is not None else "length" if is_full else ""
            if finish and stops.matched is None:
                words = (words if finish == "length" else "") + stops.push(detokenizer.flush()) + stops.flush()
            if is_opening:
                words = words.lstrip()
                is_opening = not words
            text += words
            self.last = replace(
                self.last,
                text=text,
                n_tokens=n_tokens,
                time_to_first_token_s=first_at - started,
                decode_s=last_at - first_at,
                finish=finish or "cancelled",
            )
            if words:
                yield Delta(words, n_tokens)
            if finish or (cancel is not None and cancel.is_set()):
                return
            row = self._sequence.run([token], [0], self._wanted(sampler))[0]

    def _wanted(self, sampler: Sampler) -> Wanted:
        wanted = sampler.wanted()
        return replace(wanted, n_best=min(wanted.n_best, self._n_tokens), n_tokens=self._n_tokens)
