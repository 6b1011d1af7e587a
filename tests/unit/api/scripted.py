"""The API before an engine that says what it is told to, for what official clients make of it: real requests, real
streams, no model."""

import contextlib
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tpi
from tests.unit.cli.states import cluster_state
from tpi.api.about import About
from tpi.api.accesslog import AccessLog
from tpi.api.app import make_app
from tpi.api.bounds import Bounds
from tpi.api.guards import Rules
from tpi.api.server import ApiServer
from tpi.api.service import Identity, Service
from tpi.cluster.reports import AnswerFigures
from tpi.engine.chatprompt import Prompt
from tpi.engine.generation import Answer, Delta, Finish, TokenLogprob
from tpi.engine.reading import ChatDelta
from tpi.engine.scheduler import Load
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.slots import SlotFigures, Slots
from tpi.engine.tally import Tally
from tpi.engine.turns import ChatAsk, ToolCallDelta
from tpi.errors import TpiError
from tpi.gguf.reader import Gguf, read_gguf

DEMO = Path(tpi.__file__).parent / "assets" / "demo.gguf"


@dataclass(frozen=True)
class Line:
    """What an answer says: thinking, words, calls of tools with their arguments in parts; how it ends."""

    words: Sequence[str] = ()
    thoughts: Sequence[str] = ()
    calls: Sequence[tuple[str, str, Sequence[str]]] = ()
    finish: Finish = "stop"
    error: TpiError | None = None
    stopped_by: str = ""

    def deltas(self) -> Iterator[ChatDelta]:
        for n, thought in enumerate(self.thoughts):
            yield ChatDelta(reasoning=thought, n_tokens=n + 1)
        for word in self.words:
            yield ChatDelta(word, n_tokens=len(self.thoughts) + 1)
        for index, (call, name, parts) in enumerate(self.calls):
            yield ChatDelta(tool_calls=(ToolCallDelta(index, call, name),))
            for part in parts:
                yield ChatDelta(tool_calls=(ToolCallDelta(index, arguments=part),))


class Reader:
    """Takes every delta for the next of a line."""

    def __init__(self, line: Line) -> None:
        self._deltas, self.n_reasoning_tokens = line.deltas(), len(line.thoughts)

    def push(self, delta: Delta) -> ChatDelta:
        told = next(self._deltas)
        return ChatDelta(told.content, told.reasoning, told.tool_calls, delta.logprobs, delta.n_tokens)

    def end(self) -> ChatDelta:
        return ChatDelta()


class ScriptedGeneration:
    def __init__(self, line: Line, settings: GenerationSettings) -> None:
        told = list(line.deltas())
        logprobs = () if settings.n_logprobs is None else (TokenLogprob(65, -0.5, ((65, -0.5), (66, -1.5))),)
        self._deltas = [Delta(delta.content, n + 1, logprobs) for n, delta in enumerate(told)]
        self.error, self.is_over = line.error, True
        finish = "error" if line.error is not None else line.finish
        self.answer = Answer("".join(line.words), 7, 3, len(told), 0.25, 0.5, finish, 11, line.stopped_by)

    def take(self) -> list[Delta]:
        taken, self._deltas = self._deltas, []
        return taken


class ScriptedVocabulary:
    n_tokens, bos_id, eos_id, add_bos = 256, None, 0, False

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token])

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def is_special(self, token: int) -> bool:
        return token == 0

    def token_text(self, token: int) -> str:
        return f"<{token}>"

    def special_spans(self, text: str) -> Iterator[tuple[int, int]]:
        return iter(())


class ScriptedScheduler:
    load = Load(0, 0, 0)
    failure: TpiError | None = None

    def expected(self) -> AbstractContextManager[None]:
        return nullcontext()

    def cancel(self, generation: Any) -> None:
        pass


@dataclass
class ScriptedSlots(Slots):
    """``said`` are the calls."""

    are_saved: bool = True
    said: list[tuple[str, int, str]] = field(default_factory=list)

    def save(self, slot: int, name: str) -> SlotFigures:
        self.said.append(("save", slot, name))
        return SlotFigures(7, 100, 0.5)

    def restore(self, slot: int, name: str) -> SlotFigures:
        self.said.append(("restore", slot, name))
        return SlotFigures(7, 100, 0.5)

    def erase(self, slot: int) -> int:
        self.said.append(("erase", slot, ""))
        return 7


@dataclass
class ScriptedEngine:
    """``asked`` are the prompts' origins, ``settings`` what they were asked with."""

    line: Line = Line(("Hello", " world"))
    asked: list[Any] = field(default_factory=list)
    settings: list[tuple[SamplingSettings, GenerationSettings]] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    vocabulary: ScriptedVocabulary = field(default_factory=ScriptedVocabulary)
    scheduler: ScriptedScheduler = field(default_factory=ScriptedScheduler)
    gguf: Gguf = field(default_factory=lambda: read_gguf(DEMO))
    tally: Tally = field(default_factory=Tally)
    n_context: int = 64
    n_sequences: int = 2
    thinks: bool = True
    embedder: Any = field(default_factory=lambda: SimpleNamespace(can_rank=False))
    n_cells: int = 64
    slots: "ScriptedSlots" = field(default_factory=lambda: ScriptedSlots())

    def figures(self) -> AnswerFigures:
        return AnswerFigures(self.scheduler.load.n_running, self.scheduler.load.n_waiting, 0, 0, 0)

    def check_bytes(self, text: str) -> None:
        pass

    def chat_prompt(self, ask: ChatAsk, *_: Any, is_asked: bool = True) -> Prompt:
        self.asked.append(ask)
        return Prompt((1, 2, 3, 4, 5, 6, 7), make_reader=lambda: Reader(self.line))

    def token_prompt(self, tokens: tuple[int, ...], _: Any = None) -> Prompt:
        return Prompt(tokens, make_reader=lambda: Reader(self.line))

    def raw_prompt(self, text: str, *_: Any) -> Prompt:
        self.asked.append(text)
        return Prompt(tuple(text.encode()), make_reader=lambda: Reader(self.line))

    def ask(
        self,
        prompt: Prompt,
        sampling: SamplingSettings,
        settings: GenerationSettings,
        notify: Callable[[], None],
        *_: Any,
        **__: Any,
    ) -> ScriptedGeneration:
        self.settings.append((sampling, settings))
        self.prompts.append(prompt)
        notify()
        return ScriptedGeneration(self.line, settings)


@dataclass(frozen=True)
class Played:
    """A server; its engine says ``engine.line``."""

    engine: ScriptedEngine
    url: str
    about: About

    @property
    def ask(self) -> ChatAsk:
        """The last chat that was asked."""
        asked = self.engine.asked[-1]
        assert isinstance(asked, ChatAsk)
        return asked

    def post(self, path: str, body: Any, method: str = "POST", **headers: str) -> tuple[int, Any]:
        """Status and body, of JSON."""
        data = None if body is None else json.dumps(body).encode()
        names = {"content-type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, data, names, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")


@contextlib.contextmanager
def played(
    rules: Rules | None = None,
    log: AccessLog | None = None,
    tls: ssl.SSLContext | None = None,
    bounds: Bounds | None = None,
) -> Iterator[Played]:
    engine: Any = ScriptedEngine()
    server = ApiServer("127.0.0.1", 0)
    service = Service(engine, Identity("demo", 1_700_000_000), SamplingSettings(), cluster_state, engine.slots)
    try:
        server.start(make_app(service, rules or Rules("127.0.0.1"), log), tls, bounds)
        yield Played(engine, f"http{'s' if tls else ''}://127.0.0.1:{server.port}", service.about)
    finally:
        server.close()
        service.close()
