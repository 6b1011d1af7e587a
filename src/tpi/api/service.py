"""What all APIs ask of the engine: prompts to tokens, answers as they grow, who this is. Runs on the server's loop.

A caller who hangs up is a coroutine that is cancelled; its answer then ends with the pass that runs.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from starlette.concurrency import run_in_threadpool

from tpi.engine.chat import Message
from tpi.engine.engine import Engine, Prompt
from tpi.engine.generation import Answer, Delta, Generation
from tpi.engine.settings import GenerationSettings, SamplingSettings


@dataclass(frozen=True)
class Identity:
    """The model that is served: the name that callers give, when it was begun to be served (seconds since 1970)."""

    model: str
    created_s: int
    takes_any_name: bool = False


class Service:
    """The engine, for coroutines."""

    def __init__(
        self, engine: Engine, identity: Identity, sampling: SamplingSettings, tell_cluster: Callable[[], bytes]
    ) -> None:
        """``sampling`` holds where a request says nothing. ``tell_cluster`` gives the cluster's state as JSON; it may
        block."""
        self.identity, self.sampling, self._engine, self._tell_cluster = identity, sampling, engine, tell_cluster

    @property
    def vocabulary_size(self) -> int:
        return self._engine.vocabulary.n_tokens

    @property
    def n_context(self) -> int:
        """Tokens that prompt and answer can have together."""
        return self._engine.n_context

    async def tell_cluster(self) -> bytes:
        return await run_in_threadpool(self._tell_cluster)

    async def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """See ``Engine.chat_prompt``. Templates are strangers' programs, which may take a while."""
        return await run_in_threadpool(self._engine.chat_prompt, messages)

    async def raw_prompt(self, text: str) -> Prompt:
        """See ``Engine.raw_prompt``."""
        return await run_in_threadpool(self._engine.raw_prompt, text)

    def text_of(self, token: int) -> bytes:
        """The bytes that a token adds to a text; special tokens as they are written."""
        return self._engine.vocabulary.token_bytes(token, special=True)

    def answers(
        self, prompts: Sequence[Prompt], n: int, sampling: SamplingSettings, settings: GenerationSettings
    ) -> "list[Answering]":
        """Begins ``n`` of each prompt, with seeds of their own; none, if one cannot be. Raises as ``Engine.ask``."""
        begun = list[Answering]()
        try:
            for prompt in prompts:
                for number in range(n):
                    seed = None if sampling.seed is None else sampling.seed + number
                    begun.append(Answering(self._engine, prompt, replace(sampling, seed=seed), settings))
        except BaseException:
            for answering in begun:
                answering.cancel()
            raise
        return begun


class Answering:
    """One answer on its way to a coroutine."""

    def __init__(
        self, engine: Engine, prompt: Prompt, sampling: SamplingSettings, settings: GenerationSettings
    ) -> None:
        self._engine, self._loop, self._news = engine, asyncio.get_running_loop(), asyncio.Event()
        self._generation: Generation = engine.ask(prompt, sampling, settings, self._tell)

    @property
    def answer(self) -> Answer:
        """As far as it has got."""
        return self._generation.answer

    def cancel(self) -> None:
        """It is not wanted any more."""
        self._engine.scheduler.cancel(self._generation)

    async def deltas(self) -> AsyncIterator[Delta]:
        """What it grows by, to its end.

        Raises:
            TpiError: it could not go on.
        """
        is_over = False
        while not is_over:
            await self._news.wait()
            self._news.clear()
            is_over = self._generation.is_over
            for delta in self._generation.take():
                yield delta
        if self._generation.error is not None:
            raise self._generation.error

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._news.set)


async def merged(answerings: Sequence[Answering]) -> AsyncIterator[tuple[int, Delta | Answer]]:
    """The deltas of several answers as they come, each with the number of its answer; the answer itself at its end.
    Whoever stops to listen wants none of them any more."""
    queue: asyncio.Queue[tuple[int, Delta | Answer | BaseException]] = asyncio.Queue()

    async def pass_on(number: int, answering: Answering) -> None:
        try:
            async for delta in answering.deltas():
                queue.put_nowait((number, delta))
            queue.put_nowait((number, answering.answer))
        except Exception as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.create_task(pass_on(number, answering)) for number, answering in enumerate(answerings)]
    n_open = len(tasks)
    try:
        while n_open:
            number, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            n_open -= isinstance(item, Answer)
            yield number, item
    finally:
        for task in tasks:
            task.cancel()
        for answering in answerings:
            answering.cancel()
