"""Prompts in, answers out: one prompt, a chat on a terminal, or a line at a time. Main thread.

Knows neither cluster nor arguments: it is handed who speaks, the state before and after, and where text goes.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from tpi.cli.display import Display
from tpi.cli.signals import cancelled_by_interrupt
from tpi.cli.statistics import COLUMNS, AnswerFigures, headline, measure, rows, summary
from tpi.cluster.reports import ClusterStatus
from tpi.engine.generation import Delta
from tpi.engine.reading import ChatDelta, MakeReader
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking
from tpi.errors import BusyError, Cancelled, UsageError

_HELP = "/new starts a new chat, /exit (or Ctrl-D) ends; Ctrl-C ends an answer early"


_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Asked(Protocol):
    """What is read of the engine's ``Prompt``."""

    @property
    def make_reader(self) -> MakeReader: ...


class Answered(AnswerFigures, Protocol):
    """What is read of the engine's ``Answer``."""

    @property
    def finish(self) -> str: ...


class Answering(Protocol):
    """What is read of the engine's ``Generation``."""

    @property
    def answer(self) -> Answered: ...


class Running(Protocol):
    """What the cluster offers beside passes."""

    def status(self) -> ClusterStatus: ...

    def cancel(self) -> None: ...

    def save_trace(self) -> None: ...


class Speaker(Protocol):
    """What the engine offers."""

    def check_alive(self) -> None: ...

    def chat_prompt(self, ask: ChatAsk) -> Asked: ...

    def raw_prompt(self, text: str, grammar: Grammar | None) -> Asked: ...

    def ask(self, prompt: Any, sampling: SamplingSettings, settings: GenerationSettings) -> Answering: ...

    def follow(self, generation: Any, cancel: threading.Event | None = None) -> Iterator[Delta]: ...


@dataclass(frozen=True)
class Manner:
    """How to answer, and whether to tell what it took."""

    sampling: SamplingSettings
    generation: GenerationSettings
    show_statistics: bool = True
    grammar: Grammar | None = None
    """Of every answer."""
    thinking: Thinking = field(default_factory=Thinking)
    system: str = ""
    """What every chat begins with, and what is pinned."""


class Talk:
    """Answers prompts of one user.

    Args:
        cluster: tells its state, before and after every answer if statistics are wanted; ends a pass that the user does
            not want to wait for.
        notes: called before every answer, to tell what has happened meanwhile.
        output: where answers go (default: standard output); on a terminal, characters that would move its cursor are
            left out.
    """

    def __init__(
        self,
        speaker: Speaker,
        cluster: Running,
        manner: Manner,
        display: Display,
        output: TextIO | None = None,
        notes: Callable[[], None] = lambda: None,
    ) -> None:
        self._speaker = speaker
        self._cluster = cluster
        self._tell_notes = notes
        self._manner = manner
        self._display = display
        self._output = output or sys.stdout
        self._is_terminal = self._output.isatty()
        self._words = self._thoughts = ""
        """Of the last answer."""

    def answer_once(self, text: str) -> None:
        """Answers ``text`` on the output, then shows a table of what it took.

        Raises:
            Cancelled: the user pressed Ctrl-C; the statistics were shown.
        """
        answer = self._answer([Message("user", text)], self._show_table)
        if answer.finish == "cancelled":
            raise Cancelled("the answer was cancelled")

    def answer_lines(self, lines: Iterable[str]) -> None:
        """Answers every line that is not blank, each for itself.

        Raises:
            Cancelled: the user pressed Ctrl-C.
        """
        for line in lines:
            if line.strip():
                self.answer_once(line.rstrip("\r\n"))

    def chat(self, read_line: Callable[[Callable[[], None]], str | None]) -> None:
        """Chats until ``read_line`` gives None or ``/exit``. It is handed what raises once there is nobody to ask."""
        self._display.note(_HELP)
        messages: list[Message] = []
        while (line := read_line(self._speaker.check_alive)) is not None:
            word = line.strip()
            if word == "/exit":
                return
            if word == "/new":
                messages = []
                self._display.note("a new chat")
            elif word in ("/help", "/?"):
                self._display.note(_HELP)
            elif word:
                messages = self._turn(messages, line)

    def _turn(self, messages: list[Message], line: str) -> list[Message]:
        """The chat with one more question and answer; as it was, if the question cannot be asked."""
        asked = [*messages, Message("user", line)]
        try:
            self._answer(asked, self._show_summary)
        except (UsageError, BusyError) as error:
            self._display.note(f"tpi: {error}; /new starts a new chat")
            return messages
        return [*asked, Message("assistant", self._words, self._thoughts)]

    def _answer(
        self, messages: Sequence[Message], show: Callable[[ClusterStatus, ClusterStatus, Answered], None]
    ) -> Answered:
        cancel = threading.Event()
        # Around all of it: a Ctrl-C that comes when the answer has just ended must not end the chat.
        self._tell_notes()
        with cancelled_by_interrupt(cancel, self._cluster.cancel):
            before = self._cluster.status() if self._manner.show_statistics else None
            answer = self._generate(self._make_prompt(messages), cancel)
            self._cluster.save_trace()
            if answer.finish == "length":
                self._display.note(f"the answer was cut after {answer.n_tokens} tokens: {self._why_cut(answer)}")
            if before is not None:
                show(before, self._cluster.status(), answer)
        return answer

    def _why_cut(self, answer: Answered) -> str:
        if answer.n_tokens >= self._manner.generation.max_tokens:
            return "--max-tokens allows no more"
        return "the context is full"

    def _make_prompt(self, messages: Sequence[Message]) -> Asked:
        manner = self._manner
        if manner.generation.raw:
            return self._speaker.raw_prompt("".join(message.content for message in messages), manner.grammar)
        if manner.system:
            messages = (Message("system", manner.system), *messages)
        return self._speaker.chat_prompt(ChatAsk(tuple(messages), grammar=manner.grammar, thinking=manner.thinking))

    def _generate(self, prompt: Asked, cancel: threading.Event) -> Answered:
        """Writes the answer as it grows, and ends its last line."""
        manner, reader = self._manner, prompt.make_reader()
        self._words = self._thoughts = ""
        generation = self._speaker.ask(prompt, manner.sampling, manner.generation)
        for delta in self._speaker.follow(generation, cancel):
            self._tell(reader.push(delta))
        self._tell(reader.end())
        shown = self._words or (self._thoughts if self._is_terminal else "")
        if shown and not shown.endswith("\n"):
            self._write("\n")
        return generation.answer

    def _tell(self, told: ChatDelta) -> None:
        """Thinking is dimmed on a terminal, and shown nowhere else."""
        if told.reasoning and self._is_terminal:
            self._output.write(_DIM)
            self._write(told.reasoning)
            self._output.write(_PLAIN)
        if told.content and not self._words and self._thoughts and self._is_terminal:
            self._write("\n\n")
        self._words += told.content
        self._thoughts += told.reasoning
        self._write(told.content)

    def _write(self, text: str) -> None:
        if self._is_terminal:
            text = "".join(c for c in text if c.isprintable() or c in "\n\t")
        self._output.write(text)
        self._output.flush()

    def _show_table(self, before: ClusterStatus, after: ClusterStatus, answer: Answered) -> None:
        statistics = measure(before, after, answer)
        self._display.table(headline(statistics), COLUMNS, rows(statistics))

    def _show_summary(self, before: ClusterStatus, after: ClusterStatus, answer: Answered) -> None:
        self._display.note(f"[{summary(measure(before, after, answer))}]")
