"""What an answer says, told apart as it comes: thinking, words, calls of tools. One reader per answer, one thread."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from tpi.engine.generation import Answer, Delta, TokenLogprob
from tpi.engine.turns import ToolCall, ToolCallDelta, grown_calls

ReplyFinish: TypeAlias = Literal["", "stop", "length", "tool_calls", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What an answer has grown by."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of all tokens since the last delta, whatever they belong to."""
    n_tokens: int = 0
    """Of the answer so far."""

    @property
    def is_empty(self) -> bool:
        return not (self.content or self.reasoning or self.tool_calls or self.logprobs)


class Reader(Protocol):
    """Reads one answer in a dialect."""

    @property
    def n_reasoning_tokens(self) -> int:
        """So far."""

    def push(self, delta: Delta) -> ChatDelta:
        """What can be told after these words: nothing of a marker that may still become one."""

    def end(self) -> ChatDelta:
        """What was held back, when no more comes."""


MakeReader: TypeAlias = Callable[[], Reader]


class PlainReader:
    """All that comes is content."""

    n_reasoning_tokens = 0

    def push(self, delta: Delta) -> ChatDelta:
        return ChatDelta(delta.text, logprobs=delta.logprobs, n_tokens=delta.n_tokens)

    def end(self) -> ChatDelta:
        return ChatDelta()


@dataclass(frozen=True, slots=True)
class Reply:
    """All that was told of an answer, and what it took."""

    answer: Answer
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    n_reasoning_tokens: int = 0

    @property
    def finish(self) -> ReplyFinish:
        """As the answer's; ``tool_calls`` where it stopped after one."""
        return "tool_calls" if self.tool_calls and self.answer.finish == "stop" else self.answer.finish


class ReplyBuilder:
    """Reads an answer, and keeps what it said."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: tuple[ToolCall, ...] = ()
        self._logprobs: list[TokenLogprob] = []

    def push(self, delta: Delta) -> ChatDelta:
        return self._keep(self._reader.push(delta))

    def end(self) -> ChatDelta:
        return self._keep(self._reader.end())

    def reply(self, answer: Answer) -> Reply:
        """What was said so far."""
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        n_reasoning = self._reader.n_reasoning_tokens
        return Reply(answer, content, reasoning, self._calls, tuple(self._logprobs), n_reasoning)

    def _keep(self, told: ChatDelta) -> ChatDelta:
        self._content.append(told.content)
        self._reasoning.append(told.reasoning)
        self._calls = grown_calls(self._calls, told.tool_calls)
        self._logprobs += told.logprobs
        return told
