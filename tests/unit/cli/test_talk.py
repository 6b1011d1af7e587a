"""Answering one prompt, lines, and chats, with an engine that only echoes."""

import dataclasses
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.unit.cli.states import FakeAnswer, cluster_state
from tpi.cli import signals
from tpi.cli.display import PlainDisplay
from tpi.cli.talk import Manner, Talk
from tpi.cluster.reports import ClusterStatus
from tpi.engine.dialects.reader import DialectReader
from tpi.engine.dialects.registry import find_dialect
from tpi.engine.generation import Delta
from tpi.engine.reading import MakeReader, PlainReader
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.turns import ChatAsk, Grammar, Message
from tpi.errors import Cancelled, LinkError, UsageError


@dataclasses.dataclass
class Asked:
    make_reader: MakeReader = PlainReader


class Echoed:
    answer: FakeAnswer


class Echo:
    """Answers with the last message's words, one by one; what it was asked stays in ``asked``."""

    def __init__(
        self, before_word: Callable[[str], None] = lambda word: None, prefix: str = "", finish: str = "stop"
    ) -> None:
        self.asked: list[list[Message] | str] = []
        self._before_word = before_word
        self._prefix, self._finish = prefix, finish

    def check_alive(self) -> None:
        raise LinkError("attic (rank 1) is gone")

    def chat_prompt(self, ask: ChatAsk) -> Asked:
        if ask.messages[-1].content == "too long":
            raise UsageError("the prompt is too long")
        self.asked.append(list(ask.messages))
        return Asked()

    def raw_prompt(self, text: str, grammar: Grammar | None) -> Asked:
        self.asked.append(text)
        return Asked()

    def ask(self, prompt: Asked, sampling: SamplingSettings, settings: GenerationSettings) -> "Echoed":
        return Echoed()

    def follow(self, generation: "Echoed", cancel: threading.Event | None = None) -> Iterator[Delta]:
        asked = self.asked[-1]
        text = self._prefix + (asked if isinstance(asked, str) else asked[-1].content)
        said, finish = "", self._finish
        for word in text.split():
            self._before_word(word)
            if cancel is not None and cancel.is_set():
                finish = "cancelled"
                break
            said += (" " if said else "") + word
            yield Delta((" " if said != word else "") + word, 1)
        generation.answer = FakeAnswer(text=said, finish=finish)


class FakeCluster:
    """Five tokens further at every look; counts how often a pass was to end."""

    def __init__(self) -> None:
        self._states = iter(range(0, 1000, 5))
        self.n_cancelled = self.n_saved = 0

    def status(self) -> ClusterStatus:
        return cluster_state(2, grown_by=next(self._states))

    def cancel(self) -> None:
        self.n_cancelled += 1

    def save_trace(self) -> None:
        self.n_saved += 1


@dataclasses.dataclass
class Desk:
    """A talk and what it wrote."""

    talk: Talk
    echo: Echo
    output: io.StringIO
    notes: io.StringIO
    cluster: FakeCluster


def make_desk(
    echo: Echo | None = None,
    raw: bool = False,
    statistics: bool = True,
    output: io.StringIO | None = None,
    tell: Callable[[], None] = lambda: None,
    max_tokens: int = 512,
) -> Desk:
    echo, output, notes = echo or Echo(), output or io.StringIO(), io.StringIO()
    cluster = FakeCluster()
    manner = Manner(SamplingSettings(), GenerationSettings(max_tokens, raw=raw), statistics)
    return Desk(Talk(echo, cluster, manner, PlainDisplay(notes), output, tell), echo, output, notes, cluster)


def test_one_answer_and_what_it_took() -> None:
    desk = make_desk()
    desk.talk.answer_once("Hello there")
    assert desk.output.getvalue() == "Hello there\n"
    assert desk.echo.asked == [[Message("user", "Hello there")]]
    notes = desk.notes.getvalue()
    assert "seed 42" in notes and "device-1" in notes and "1.0 kB" in notes


@pytest.mark.parametrize(("max_tokens", "why"), [(5, "--max-tokens allows no more"), (512, "the context is full")])
def test_an_answer_that_was_cut_says_so(max_tokens: int, why: str) -> None:
    desk = make_desk(Echo(finish="length"), statistics=False, max_tokens=max_tokens)
    desk.talk.answer_once("Once upon")
    assert desk.notes.getvalue() == f"the answer was cut after 5 tokens: {why}\n"


def test_a_raw_prompt_and_no_statistics() -> None:
    desk = make_desk(raw=True, statistics=False)
    desk.talk.answer_once("Once upon")
    assert desk.echo.asked == ["Once upon"]
    assert desk.notes.getvalue() == ""


def test_what_happened_meanwhile_is_told_before_every_answer() -> None:
    told: list[str] = []
    desk = make_desk(Echo(told.append), tell=lambda: told.append("notes"))
    desk.talk.answer_lines(["one\n", "two\n"])
    assert told == ["notes", "one", "notes", "two"] and desk.cluster.n_cancelled == 0


def test_lines_are_answered_each_for_itself() -> None:
    desk = make_desk()
    desk.talk.answer_lines(["one\n", "\n", "  \n", "two\r\n"])
    assert desk.output.getvalue() == "one\ntwo\n"
    assert desk.echo.asked == [[Message("user", "one")], [Message("user", "two")]]


def test_a_chat_remembers() -> None:
    desk = make_desk()
    lines = iter(["first", "", "/help", "second", "/new", "third", "/exit", "never"])
    desk.talk.chat(lambda check: next(lines))
    first = [Message("user", "first"), Message("assistant", "first")]
    assert desk.echo.asked == [
        first[:1],
        [*first, Message("user", "second")],
        [Message("user", "third")],
    ]
    assert next(lines) == "never"
    assert desk.notes.getvalue().count("seed 42") == 3


def test_a_chat_survives_what_cannot_be_asked() -> None:
    desk = make_desk()
    lines = iter(["first", "too long", "second", None])
    desk.talk.chat(lambda check: next(lines))
    assert "tpi: the prompt is too long" in desk.notes.getvalue()
    assert desk.echo.asked[-1] == [
        Message("user", "first"),
        Message("assistant", "first"),
        Message("user", "second"),
    ]


def test_a_chat_ends_when_there_is_nobody_to_ask() -> None:
    def read_line(check: Callable[[], None]) -> str:
        check()
        return "never asked"

    desk = make_desk()
    with pytest.raises(LinkError, match="attic"):
        desk.talk.chat(read_line)
    assert desk.echo.asked == []


def interrupt(word: str) -> None:
    if word == "stop":
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_one_answer_with_an_error() -> None:
    desk = make_desk(Echo(interrupt))
    with pytest.raises(Cancelled):
        desk.talk.answer_once("go on stop here")
    assert desk.output.getvalue() == "go on\n" and desk.cluster.n_cancelled == 0
    assert "seed" in desk.notes.getvalue()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_pass_that_does_not_end_soon_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_GRACE_S", 0.02)

    def interrupt_and_go_on(word: str) -> None:
        interrupt(word)
        if word == "stop":
            deadline_s = time.monotonic() + 20
            while not desk.cluster.n_cancelled and time.monotonic() < deadline_s:
                time.sleep(0.005)

    desk = make_desk(Echo(interrupt_and_go_on))
    with pytest.raises(Cancelled):
        desk.talk.answer_once("go on stop here")
    assert desk.cluster.n_cancelled == 1


def test_ctrl_c_ends_an_answer_of_a_chat_and_not_the_chat() -> None:
    desk = make_desk(Echo(interrupt))
    lines = iter(["go stop here", "more", None])
    desk.talk.chat(lambda check: next(lines))
    assert desk.echo.asked[-1][1:] == [Message("assistant", "go"), Message("user", "more")]


def test_the_second_ctrl_c_ends_everything() -> None:
    def twice(word: str) -> None:
        if word == "stop":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_desk(Echo(twice)).talk.answer_once("go stop")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_model_cannot_drive_the_terminal() -> None:
    harmful = "\x1b[2Jred\x07\x9b31m"
    desk = make_desk(Echo(prefix=harmful), output=Terminal())
    desk.talk.answer_once(" tail")
    assert desk.output.getvalue() == "[2Jred31m tail\n"
    plain = make_desk(Echo(prefix=harmful))
    plain.talk.answer_once(" tail")
    assert plain.output.getvalue() == harmful + " tail\n"


def test_no_answer_at_all_ends_no_line() -> None:
    desk = make_desk()
    desk.talk.answer_once("   ")
    assert desk.output.getvalue() == ""


class Thinker(Echo):
    def chat_prompt(self, ask: ChatAsk) -> Asked:
        super().chat_prompt(ask)
        return Asked(lambda: DialectReader(find_dialect("<think></think>", lambda _: False)))


def test_thinking_is_dimmed_and_kept_apart() -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    for output, shown in ((terminal, "\x1b[2mhm\x1b[0m"), (io.StringIO(), "")):
        desk = make_desk(Thinker(), output=output)
        lines = iter(["<think>hm</think> hello", "<think>well</think>"])
        desk.talk.chat(lambda check, lines=lines: next(lines, None))  # type: ignore[misc]
        assert desk.output.getvalue().startswith(f"{shown}\n\nhello\n" if shown else "hello\n")
        assert desk.echo.asked[1][1] == Message("assistant", "hello", "hm")
