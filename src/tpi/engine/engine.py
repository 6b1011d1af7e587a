"""Answers prompts: the scheduler of a cluster, with the model's language. The master's.

Owns the embedding table; cluster and language belong to the caller.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Self

from tpi.cluster.reports import AnswerFigures
from tpi.engine.cells import count_alike
from tpi.engine.chat import Segment
from tpi.engine.chatprompt import ChatPrompts, Prompt
from tpi.engine.constraint import Constraint
from tpi.engine.driver import Driver
from tpi.engine.embedder import Embedder
from tpi.engine.generation import Delta, Generation, OnStreams, Request
from tpi.engine.language import Language
from tpi.engine.prompt import encode_segments
from tpi.engine.runner import PassRunner
from tpi.engine.scheduler import Scheduler
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.tally import Tally
from tpi.engine.turns import ChatAsk, Grammar, Message
from tpi.errors import BusyError, ContextError, TpiError, UsageError
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.ggml.quantize import quantized

_PAIR_TEMPLATE_KEY = "tokenizer.chat_template.rerank"
_DIFFERENT = "Hello!", "Why is the sky blue?"
"""What users may say, with nothing in common."""
_FEW_BYTES = 16
"""Of texts that have so many for every token that fits, it is looked up how many the longest token has."""
_LOOK_S = 0.1
"""How long at most until a cancellation is noticed while nothing comes."""


class Engine:
    """Generates text with a cluster. A context manager; ``close`` is idempotent."""

    def __init__(self, runner: PassRunner, language: Language, *, pins: bool = False) -> None:
        """``runner`` computes with the model of ``language``. ``pins``: ``pin`` will be called, and there is a sequence
        more for it where not all of one lies in cells.

        Raises:
            ModelFileError, UnsupportedModelError: the embedding table or the head's norm cannot be read.
        """
        self._stack = ExitStack()
        self.vocabulary, self.template = language.vocabulary, language.template
        self.gguf = quantized(language.gguf, runner.spec.quant)
        table = self._stack.enter_context(EmbeddingTable(self.gguf, runner.spec))
        self._prompts = ChatPrompts(self.vocabulary, self.template, language.tool_template)
        self.tally = Tally()
        self.embedder = Embedder(self.gguf, runner.spec)
        self._driver: Driver | None = None
        self._pinned: Message | None = None
        retention = runner.retention
        self._runner, self._keeps_states = runner, retention.keeps_states
        self.n_sequences = runner.n_sequences - (pins and retention.is_bound)
        """How many answers can be under way at once."""
        self.scheduler = Scheduler(runner, table, self.vocabulary, keeps_ended=self.n_sequences > 1)
        self._stack.callback(self.scheduler.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def n_context(self) -> int:
        """Tokens that a prompt and its answer can have together, whatever they begin with."""
        return min(self._runner.n_context, self._runner.n_cells - self.scheduler.n_pinned)

    @property
    def n_cells(self) -> int:
        """For tokens of all sequences together."""
        return self._runner.n_cells

    def figures(self) -> AnswerFigures:
        """What it was asked, and what it does. Any thread."""
        load, tally = self.scheduler.load, self.tally
        return AnswerFigures(
            load.n_running,
            load.n_waiting,
            tally.n_prompt_tokens,
            tally.n_cached_tokens,
            tally.n_tokens,
            self.scheduler.n_pinned,
        )

    @property
    def thinks(self) -> bool:
        """The model can think aloud before it answers."""
        return self._prompts.dialect.thinking is not None

    def pin(self, system: str) -> None:
        """Computes what chats with this system message begin with, and keeps that for good. Before anybody asks;
        blocks.

        Raises:
            UsageError: the template has no place for it, or it does not fit the context.
            TpiError: see ``follow``.
        """
        if not self.template.traits.knows_system:
            raise UsageError("the model's chat template has no place for it")
        self._pinned = Message("system", system)
        first, n_alike = self._alike(self._pinned)
        self.scheduler.pin(first[:n_alike])
        request = Request(first, SamplingSettings(temperature=0), GenerationSettings(max_tokens=1))
        for _ in self.follow(self.scheduler.submit(request)):
            pass

    def _alike(self, system: Message) -> tuple[tuple[int, ...], int]:
        """A chat with this message, and how many of its tokens all others begin with at the moment."""
        first, other = (self._prompts.chat(ChatAsk((system, Message("user", words)))).tokens for words in _DIFFERENT)
        return first, count_alike(first, other)

    def _pin_again(self, ask: ChatAsk, tokens: Sequence[int]) -> None:
        """A template may tell the date: what chats with the pinned message begin with by now is pinned instead."""
        system, pinned = self._pinned, self.scheduler.pinned
        if system is None or ask.messages[:1] != (system,) or count_alike(tokens, pinned) == len(pinned):
            return
        first, n_alike = self._alike(system)
        if count_alike(first, pinned) < len(pinned):
            with suppress(BusyError):  # the next chat does it
                self.scheduler.pin_again(first[:n_alike])

    def drive(self, on_failure: Callable[[Exception], None]) -> None:
        """From now on, until the end, a thread of its own runs the passes; see ``Driver``."""
        self._driver = self._stack.enter_context(Driver(self.scheduler, self._runner.check_alive, on_failure))

    def check_alive(self) -> None:
        """Tells whoever asks nothing at the moment, too. Any thread.

        Raises:
            TpiError: no answer can be given any more.
        """
        if self.scheduler.failure is not None:
            raise self.scheduler.failure
        if self._driver is None:
            self._runner.check_alive()

    def chat_prompt(self, ask: ChatAsk, check: Callable[[], None] = lambda: None, *, is_asked: bool = True) -> Prompt:
        """A chat, ready for the assistant's turn; if it ``is_asked`` then, one that is far too long is not read first.
        Raises as ``ChatPrompts.chat``, and

        Raises:
            ContextError: it is that long.
        """
        prompt = self._prompts.chat(ask, check, self.check_bytes if is_asked else lambda text: None)
        check()
        if is_asked:
            self._pin_again(ask, prompt.tokens)
        return replace(prompt, marks=self._marks(ask, prompt.tokens))

    def raw_prompt(self, text: str, grammar: Grammar | None = None) -> Prompt:
        """A text that is taken as it is. Raises as ``chat_prompt``."""
        self.check_bytes(text)
        return self._prompts.raw(text, grammar)

    def token_prompt(self, tokens: tuple[int, ...], grammar: Grammar | None = None) -> Prompt:
        """The same, of its tokens."""
        return self._prompts.text(tokens, grammar)

    def check_bytes(self, text: str) -> None:
        """Refuses what cannot fit, however well its bytes go into tokens, so that nobody reads it for nothing.

        Raises:
            ContextError: it is that long.
        """
        n_most = self.n_context - 1
        if len(text) <= _FEW_BYTES * n_most:
            return
        n_bytes = len(text.encode("utf-8", "replace"))
        n_tokens = -(-n_bytes // self.vocabulary.longest_bytes)
        if n_tokens > n_most:
            raise ContextError(
                f"the prompt has {n_bytes:,} bytes, which are {n_tokens} tokens at least, {n_tokens - n_most} more "
                f"than the {n_most} that fit the context: shorten it",
                n_tokens - n_most,
            )

    def pair_prompt(self, query: str, document: str) -> tuple[int, ...]:
        """A query and a document whose going together is to be told, in the form that the model's file has for it.

        Raises:
            UsageError: a text is too long.
        """
        vocabulary, form = self.vocabulary, self.gguf.metadata.get(_PAIR_TEMPLATE_KEY)
        if not isinstance(form, str):
            first, second = (
                vocabulary.tokenize(text, add_special=True, parse_special=False) for text in (query, document)
            )
            return (*first, *second[second[:1] == [vocabulary.bos_id] :])
        texts = {"{query}": query, "{document}": document}
        parts = re.split("({query}|{document})", form)
        segments = [Segment(texts.get(part, part), part in texts) for part in parts if part]
        return tuple(encode_segments(vocabulary, segments))

    def _marks(self, ask: ChatAsk, tokens: Sequence[int]) -> tuple[int, ...]:
        """Where other chats with the same instructions go on, if what is kept of these has to be kept on purpose."""
        n = next((number for number, message in enumerate(ask.messages) if message.role != "system"), 0)
        if not n or not self._keeps_states:
            return ()
        try:
            alike = self._prompts.beginning(ask.messages[:n], ask)
        except TpiError:  # some templates want a user's turn
            return ()
        return (count_alike(tokens, alike),)

    def ask(
        self,
        prompt: Prompt,
        sampling: SamplingSettings,
        settings: GenerationSettings,
        notify: Callable[[], None] = lambda: None,
        constraint: Constraint | None = None,
    ) -> Generation:
        """Takes a prompt in; the answer comes as ``follow``, or whoever else calls the scheduler's ``step``, goes on,
        and ``notify`` is told that there is news. A ``constraint`` belongs to one answer.

        Raises:
            UsageError: the prompt does not fit the context.
            BusyError: too many wait already.
        """
        stops = () if settings.raw else self.template.stop
        constraint = prompt.make_constraint() if constraint is None else constraint
        # fmt: off
        request = Request(
            prompt.tokens, sampling, settings, stops, prompt.marks, constraint, shown=prompt.shown,
            is_begun=prompt.is_begun,
        )
        # fmt: on
        return self._submit(request, notify)

    def embed(
        self, tokens: Sequence[int], notify: Callable[[], None], on_streams: OnStreams | None = None
    ) -> Generation:
        """Takes a text in whose ``stream`` after the last token is wanted, or the stream after each, which
        ``Request.on_streams`` is told; and no answer. Raises as ``ask``."""
        settings = SamplingSettings(), GenerationSettings(1)
        return self._submit(Request(tuple(tokens), *settings, is_embedded=True, on_streams=on_streams), notify)

    def _submit(self, request: Request, notify: Callable[[], None]) -> Generation:
        """What is asked, counted."""
        watch = self.tally.watch(notify)
        generation = self.scheduler.submit(request, watch.tell)
        watch.begin(generation)
        return generation

    def follow(self, generation: Generation, cancel: threading.Event | None = None) -> Iterator[Delta]:
        """Runs passes until the answer is complete, and yields it as it grows. ``cancel`` ends it before the next pass;
        a pass that is stopped meanwhile ends it, too.

        Raises:
            NumericError, LinkError, KernelError, ModelFileError: a pass failed.
        """
        try:
            is_over = False
            while not is_over:
                if not generation.is_over:
                    self._advance(generation)
                is_over = generation.is_over  # before the last deltas are taken: others may come meanwhile
                yield from generation.take()
                if cancel is not None and cancel.is_set():
                    break
        finally:
            self.scheduler.cancel(generation)
            if self._driver is None:
                self.scheduler.let_go()
        if generation.error is not None:
            raise generation.error

    def _advance(self, generation: Generation) -> None:
        if self._driver is None:
            self.scheduler.step()
        else:
            generation.wait(_LOOK_S)
