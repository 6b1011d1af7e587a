"""What all APIs ask of the engine: prompts to tokens, answers as they grow, who this is. Runs on the server's loop.

A caller who hangs up is a coroutine that is cancelled; its answer then ends with the pass that runs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
from starlette.concurrency import run_in_threadpool

from tpi.api.about import describe_model
from tpi.api.accesslog import note_answers
from tpi.api.asks import AnyAsk, Ask
from tpi.api.errors import Problem
from tpi.api.vectors import Vectors
from tpi.api.waking import Waker
from tpi.api.workers import Going, Result, Workers
from tpi.cluster.reports import ClusterStatus
from tpi.engine.chatprompt import Prompt
from tpi.engine.engine import Engine
from tpi.engine.generation import Answer, Generation
from tpi.engine.reading import ChatDelta, Reply, ReplyBuilder
from tpi.engine.scheduler import MAX_WAITING, Load
from tpi.engine.settings import MAX_SEED, GenerationSettings, SamplingSettings
from tpi.engine.slots import Slots
from tpi.engine.tally import Tally
from tpi.engine.turns import ChatAsk
from tpi.errors import BusyError, Cancelled, TpiError


@dataclass(frozen=True)
class Identity:
    """The model that is served: the name that callers give, when it was begun to be served (seconds since 1970)."""

    model: str
    created_s: int
    takes_any_name: bool = False


class Service:
    """The engine, for coroutines."""

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        sampling: SamplingSettings,
        find_status: Callable[[], ClusterStatus],
        slots: Slots,
    ) -> None:
        """``sampling`` holds where a request says nothing. ``find_status`` gives the cluster's state; it may block.
        ``slots`` is who saves and restores them."""
        self.slots = slots
        self.identity, self.sampling, self._engine, self._find_status = identity, sampling, engine, find_status

        self.workers, self._waker = Workers(), Waker()
        self.about, self.vectors = describe_model(engine.gguf), Vectors(engine, self.workers, self._waker)

    def close(self) -> None:
        """Waits for the threads that work for callers. The engine has to be there until then."""
        self.workers.close()
        self._waker.close()

    @property
    def vocabulary_size(self) -> int:
        return self._engine.vocabulary.n_tokens

    @property
    def n_context(self) -> int:
        """Tokens that prompt and answer can have together."""
        return self._engine.n_context

    @property
    def tally(self) -> Tally:
        return self._engine.tally

    def load(self) -> Load:
        """What there is to do now."""
        return self._engine.scheduler.load

    @property
    def failure(self) -> TpiError | None:
        """After this no answer can be given any more."""
        return self._engine.scheduler.failure

    @property
    def n_cells(self) -> int:
        """Of all sequences together."""
        return self._engine.n_cells

    async def status(self) -> ClusterStatus:
        """Every rank's figures, and those of the answers; takes as long as ranks take to tell them."""
        status = await run_in_threadpool(self._find_status)
        return msgspec.structs.replace(status, answers=self._engine.figures())

    async def work(self, work: Callable[[], Result]) -> Result:
        """What may take long, in a thread that has no other work. Raises as ``Workers.run``."""
        return await self.workers.run(lambda _: work())

    def prompt(self, ask: AnyAsk, going: Going, *, is_asked: bool = True) -> Prompt:
        """Templates are strangers' programs, which may take a while: not to be called on the loop. ``is_asked``: an
        answer is wanted.

        Raises:
            TpiError: see ``Engine.chat_prompt``.
            Problem: there is no such token.
        """
        if isinstance(ask, ChatAsk):
            return self._engine.chat_prompt(ask, going.check, is_asked=is_asked)
        if not ask.tokens:
            return self._engine.raw_prompt(ask.text, ask.grammar)
        self.check_tokens(ask.tokens)
        return self._engine.token_prompt(ask.tokens, ask.grammar)

    def check_tokens(self, tokens: Sequence[int], param: str = "prompt") -> None:
        """Raises as ``check_token``."""
        for token in (min(tokens, default=0), max(tokens, default=0)):
            self.check_token(token, param)

    def check_token(self, token: int, param: str = "prompt") -> None:
        """``param`` is where it came from.

        Raises:
            Problem: there is none such.
        """
        last = self.vocabulary_size - 1
        if not 0 <= token <= last:
            raise Problem(400, f"{str(token)[:80]} is no token: there are 0 to {last}", param=param)

    def check_model(self, name: str | None) -> None:
        """Raises:
        Problem: a name that is not the model's was given.
        """
        identity = self.identity
        if name is not None and name != identity.model and not identity.takes_any_name:
            raise Problem(
                404,
                f"there is no model {name[:80]!r} here, but {identity.model!r}: ask for that",
                code="model_not_found",
                param="model",
            )

    @property
    def tagged_name(self) -> str:
        """The model's name with a tag, as Ollama's clients have it."""
        name = self.identity.model
        return name if ":" in name else f"{name}:latest"

    def check_tagged(self, name: str | None) -> str:
        """A name that may have the tag; gives the one that the caller knows. Raises as ``check_model``."""
        plain = None if name is None else name.removesuffix(":latest")
        self.check_model(name if name == self.identity.model else plain)
        return name or self.tagged_name

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, in Ollama's words: tools are told of in a text where its template knows none."""
        return ["completion", "tools", *(["thinking"] if self._engine.thinks else [])]

    @property
    def n_places(self) -> int:
        """How many answers can be under way at once."""
        return self._engine.n_sequences

    @property
    def edges(self) -> tuple[str, str]:
        """The texts of the tokens that begin and end a text, empty where there is none."""
        vocabulary = self._engine.vocabulary
        bos, eos = (
            "" if token is None else vocabulary.token_text(token) for token in (vocabulary.bos_id, vocabulary.eos_id)
        )
        return bos, eos

    def check_text(self, text: str) -> None:
        """See ``Engine.check_bytes``."""
        self._engine.check_bytes(text)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See ``Vocabulary.tokenize``."""
        return self._engine.vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def text(self, tokens: Sequence[int]) -> str:
        """Of a prompt that came as tokens."""
        words = {token: self.text_of(token) for token in set(tokens)}
        return b"".join(map(words.__getitem__, tokens)).decode("utf-8", "replace")

    def text_of(self, token: int) -> bytes:
        """The bytes that a token adds to a text; special tokens as they are written."""
        return self._engine.vocabulary.token_bytes(token, special=True)

    async def begin(self, ask: Ask) -> "list[Answering]":
        """Begins all answers, those to one prompt after each other; none, if one cannot be. Raises as ``prompt``, as
        ``Engine.ask``, and as ``Workers.run``."""
        n_answers = len(ask.prompts) * ask.n
        what = f"{len(ask.prompts)} prompts with {ask.n} answers to each are {n_answers} answers"
        if n_answers > MAX_WAITING // 2:
            most = MAX_WAITING // 2
            raise Problem(400, f"{what}, at most {most} may be asked for at once: ask several times", param="n")
        n_free = MAX_WAITING - self.load().n_waiting
        if n_answers > max(1, n_free // 2):
            raise BusyError(f"{what}, half of the {n_free} places that are free now may be taken: try again later")
        loop = asyncio.get_running_loop()
        with self._engine.scheduler.expected():
            begun = await self.workers.run(lambda going: self._begin(ask, loop, going), _cancel_all)
        note_answers(begun)
        return begun

    def _begin(self, ask: Ask, loop: asyncio.AbstractEventLoop, going: Going) -> "list[Answering]":
        prompts = list[Prompt]()
        for item in ask.prompts:
            prompts.append(self.prompt(item, going))
            going.check()
        begun = list[Answering]()
        try:
            for prompt in prompts:
                for number in range(ask.n):
                    seed = None if ask.sampling.seed is None else (ask.sampling.seed + number) % (MAX_SEED + 1)
                    sampling = replace(ask.sampling, seed=seed)
                    begun.append(
                        Answering(
                            self._engine, prompt, sampling, ask.settings, lambda news: self._waker.wake(loop, news)
                        )
                    )
                    going.check()
        except BaseException:
            _cancel_all(begun)
            raise
        return begun


class Answering:
    """One answer on its way to a coroutine. Begun by any thread."""

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        sampling: SamplingSettings,
        settings: GenerationSettings,
        wake: Callable[[asyncio.Event], None],
    ) -> None:
        """``wake`` sets an event on the coroutine's loop; any thread may call it."""
        self._engine, self._wake, self._news = engine, wake, asyncio.Event()
        self._generation: Generation = engine.ask(prompt, sampling, settings, self._tell)
        self._is_wanted = True
        self._builder = ReplyBuilder(prompt.make_reader())

    @property
    def answer(self) -> Answer:
        """As far as it has got."""
        return self._generation.answer

    @property
    def reply(self) -> Reply:
        """What was told so far."""
        return self._builder.reply(self._generation.answer)

    def cancel(self) -> None:
        """It is not wanted any more."""
        self._is_wanted = False
        self._engine.scheduler.cancel(self._generation)

    async def deltas(self) -> AsyncIterator[ChatDelta]:
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
                if not (told := self._builder.push(delta)).is_empty:
                    yield told
        if not (told := self._builder.end()).is_empty:
            yield told
        if self._generation.error is not None:
            raise self._generation.error
        if self._is_wanted and self._generation.answer.finish == "cancelled":
            raise Cancelled("the answer was stopped by the server: ask again")

    def _tell(self) -> None:
        self._wake(self._news)


def _cancel_all(answerings: "Sequence[Answering]") -> None:
    for answering in answerings:
        answering.cancel()


async def merged(answerings: Sequence[Answering]) -> AsyncIterator[tuple[int, ChatDelta | Reply]]:
    """The deltas of several answers as they come, each with the number of its answer; the whole reply at its end.
    Whoever stops to listen wants none of them any more."""
    queue: asyncio.Queue[tuple[int, ChatDelta | Reply | BaseException]] = asyncio.Queue()

    async def pass_on(number: int, answering: Answering) -> None:
        try:
            async for delta in answering.deltas():
                queue.put_nowait((number, delta))
            queue.put_nowait((number, answering.reply))
        except Exception as error:
            queue.put_nowait((number, error))

    tasks = [asyncio.create_task(pass_on(number, answering)) for number, answering in enumerate(answerings)]
    n_open = len(tasks)
    try:
        while n_open:
            number, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            n_open -= isinstance(item, Reply)
            yield number, item
    finally:
        for task in tasks:
            task.cancel()
        for answering in answerings:
            answering.cancel()


async def replies(answerings: Sequence[Answering]) -> list[Reply]:
    """All of them, when they are complete."""
    found: dict[int, Reply] = {}
    async for number, item in merged(answerings):
        if isinstance(item, Reply):
            found[number] = item
    return [found[number] for number in range(len(answerings))]
