"""What is said in a chat, and what is asked of it: plain data that templates, dialects and APIs share. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tpi.errors import UsageError

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")

ToolChoice: TypeAlias = Literal["auto", "none", "required"]
"""Whether the model decides, may call none, or must call one."""
GrammarKind: TypeAlias = Literal["json_object", "json_schema", "regex", "lark", "gbnf"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model has made; ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call; ``parameters`` is the JSON schema of its arguments, which they follow whatever
    happens if it ``is_strict``."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Raises:
        UsageError: the role is no plain word.
    """

    role: str
    """``system``, ``user``, ``assistant``, ``tool``, or another word that the template knows."""
    content: str
    reasoning: str = ""
    """What the assistant thought before it answered."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """The call whose result this is."""
    name: str = ""
    """Of who speaks, or of the tool whose result this is."""

    def __post_init__(self) -> None:
        if not _ROLE.fullmatch(self.role):
            raise UsageError(f"the message role {self.role[:80]!r} is not a word like user, assistant or system")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to look like; ``text`` is a JSON schema, an expression or a grammar, by its kind."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether a model that can think aloud does so (None: as its template has it), how hard, in the words of the
    template, and for at most how many tokens."""

    is_on: bool | None = None
    effort: str | None = None
    budget_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """A chat that the assistant is to go on with."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str = ""
    """With ``required``: the one that must be called."""
    calls_in_parallel: bool = True
    """Whether several may be called in one turn."""
    grammar: Grammar | None = None
    """Of the answer, after the thinking."""
    thinking: Thinking = Thinking()
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """More of what the template may ask for."""
    continues_last: bool = False
    """The last message is the beginning of the answer, which goes on from there."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the call with this number: its beginning has id and name, what follows a part of the arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


def grown_calls(calls: tuple[ToolCall, ...], deltas: tuple[ToolCallDelta, ...]) -> tuple[ToolCall, ...]:
    """The calls, with what has come since."""
    grown = list(calls)
    for delta in deltas:
        if delta.index == len(grown):
            grown.append(ToolCall(delta.id, delta.name, delta.arguments))
        else:
            call = grown[delta.index]
            grown[delta.index] = ToolCall(call.id, call.name, call.arguments + delta.arguments)
    return tuple(grown)
