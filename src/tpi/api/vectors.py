"""Texts as vectors, and how well two go together, for coroutines. Runs on the server's loop.

A caller who hangs up is a coroutine that is cancelled, as in ``service``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tpi.api.accesslog import Counted, note_answers
from tpi.api.errors import unsupported
from tpi.api.waking import Waker
from tpi.api.workers import Going, Result, Workers
from tpi.engine.embedder import Each, Mean, Pooling
from tpi.engine.engine import Engine
from tpi.engine.generation import Generation, OnStreams
from tpi.errors import Cancelled
from tpi.runtime.protocols import Float32Array

_AT_ONCE = 8
"""Texts of one request."""
_STOPPED = "reading the text was stopped by the server: ask again"


@dataclass(frozen=True)
class Ranked:
    """How well a document goes with a query, and of how many tokens that was read."""

    score: float
    n_tokens: int


class Vectors:
    def __init__(self, engine: Engine, workers: Workers, waker: Waker) -> None:
        self._engine, self._workers, self._waker = engine, workers, waker
        self._each_place = asyncio.Lock()

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Of a text that becomes a vector, as the model expects it: with the tokens that begin and end it. Not to be
        called on the loop."""
        return tuple(self._engine.vocabulary.tokenize(text, add_special=True, parse_special=False))

    def read(self, text: str) -> tuple[int, ...]:
        """As ``tokens_of``, of what is to fit.

        Raises:
            ContextError: it is far too long.
        """
        self._engine.check_bytes(text)
        return self.tokens_of(text)

    def cut(self, tokens: tuple[int, ...], n_most: int) -> tuple[int, ...]:
        """What ``tokens_of`` gave, in so many tokens; the one that ends a text stays."""
        end = self.tokens_of("")[-1:]
        if len(tokens) <= n_most or tokens[-1:] != end:
            return tokens[:n_most]
        return (*tokens[: n_most - 1], *end)

    @property
    def are_of_tokens(self) -> bool:
        """The model makes a vector of every token, and none of a text."""
        return self._engine.embedder.pooling is Pooling.NONE

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[Float32Array]:
        """The vectors of texts given by their tokens, each f32 [n_embd] of length 1.

        Raises:
            UsageError: a text is empty, or does not fit the context.
            UnsupportedModelError: see ``Embedder.check_pooled``.
            BusyError, LinkError: as for answers.
        """
        embedder = self._engine.embedder
        embedder.check_pooled()
        if embedder.pooling is Pooling.MEAN:
            return [mean.vector for mean in await self._gather(inputs, self._mean)]
        firsts = [tokens[:1] for tokens in inputs] if embedder.pooling is Pooling.CLS else inputs
        streams = await self._gather(firsts, self._stream)
        return await self._workers.run(lambda _: [embedder.vector(stream) for stream in streams])

    async def embed_tokens(
        self, inputs: Sequence[Sequence[int]], tell: Callable[[int, Float32Array], Result]
    ) -> list[Result]:
        """What ``tell`` makes, not on the loop, of every text's number and the vectors of all of its tokens, f32
        [n_tokens, n_embd], of any length. For one request after the other. Raises as ``embed``, and

        Raises:
            UsageError: see ``Embedder.check_each``.
        """
        self._engine.embedder.check_each(sum(map(len, inputs)))
        async with self._each_place:
            found = await self._gather(inputs, self._each)
            return await self._workers.run(lambda _: [tell(index, each.rows) for index, each in enumerate(found)])

    async def rank(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """Each document beside the query. Raises as ``embed``, and

        Raises:
            Problem: the model is not made for that.
        """
        embedder = self._engine.embedder
        if not embedder.can_rank:
            raise unsupported("documents", "ranking by a model that is not made for it")

        def make_prompts(going: Going) -> list[tuple[int, ...]]:
            prompts = list[tuple[int, ...]]()
            for document in documents:
                going.check()
                self._engine.check_bytes(query + document)
                prompts.append(self._engine.pair_prompt(query, document))
            return prompts

        prompts = await self._workers.run(make_prompts)
        streams = await self._gather(prompts, self._stream)
        return [Ranked(embedder.score(stream), len(tokens)) for stream, tokens in zip(streams, prompts, strict=True)]

    async def _gather(
        self, inputs: Sequence[Sequence[int]], compute: Callable[[Sequence[int]], Awaitable[Result]]
    ) -> list[Result]:
        """What ``compute`` gives of each. Some at once, so that others find a place in the queue."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def compute_one(tokens: Sequence[int]) -> Result:
            async with places:
                return await compute(tokens)

        tasks = [asyncio.create_task(compute_one(tokens)) for tokens in inputs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _mean(self, tokens: Sequence[int]) -> Mean:
        mean = Mean(self._engine.embedder)
        await self._read(tokens, mean.take)
        return mean

    async def _each(self, tokens: Sequence[int]) -> Each:
        each = Each(self._engine.embedder)
        await self._read(tokens, each.take)
        return each

    async def _stream(self, tokens: Sequence[int]) -> Float32Array:
        generation = await self._read(tokens)
        if generation.stream is None:
            raise Cancelled(_STOPPED)
        return generation.stream

    async def _read(self, tokens: Sequence[int], on_streams: OnStreams | None = None) -> Generation:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        generation = self._engine.embed(tokens, lambda: self._waker.wake(loop, news), on_streams)
        try:
            while not generation.is_over:
                await news.wait()
                news.clear()
        finally:
            self._engine.scheduler.cancel(generation)
            note_answers([Counted(generation.answer)])
        if generation.error is not None:
            raise generation.error
        if generation.answer.finish != "stop":
            raise Cancelled(_STOPPED)
        return generation
