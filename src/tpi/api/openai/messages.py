"""The messages of a chat in OpenAI's words, and what they come down to. Pure."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tpi.api.description import MAX_ITEMS, Given, Role
from tpi.api.errors import Problem
from tpi.engine.turns import Message, ToolCall

_ROLES = {"developer": "system", "function": "tool"}
"""By the names that templates know."""

_TEXTS = ("text", "input_text", "output_text", "refusal", "reasoning_text", "summary_text")


class Part(Given):
    """Of a content: text, by one of the names that it has in several requests."""

    type: Annotated[str, Field(json_schema_extra={"enum": list(_TEXTS)})]
    text: str | None = None
    refusal: str | None = None


Content = str | Annotated[list[Part], Field(max_length=MAX_ITEMS, fail_fast=True)] | None


class CalledFunction(Given):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str = "{}"


class GivenCall(Given):
    id: str = ""
    function: CalledFunction


class ChatMessage(Given):
    role: Role
    content: Content = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[GivenCall], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    name: str | None = None
    prefix: bool | None = None
    partial: bool | None = None

    @property
    def goes_on(self) -> bool:
        """It is the beginning of the answer."""
        return bool(self.prefix or self.partial)


def text_of(content: Content, param: str) -> str:
    """Raises:
    Problem: there is something else than text.
    """
    if not isinstance(content, list):
        return content or ""
    for number, part in enumerate(content):
        if part.type not in _TEXTS:
            place = f"{param}.{number}"
            raise Problem(400, f"a content of type {part.type!r} cannot be read: leave {place} out", param=place)
    return "".join(part.text or part.refusal or "" for part in content)


def read_messages(given: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Raises:
    UsageError: a role is no word.
    Problem: there is something else than text.
    """
    read = list[Message]()
    last_call = ""
    for number, message in enumerate(given):
        calls = tuple(
            ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
        )
        if message.function_call is not None:
            calls += (ToolCall(f"call_{number}", message.function_call.name, message.function_call.arguments),)
        last_call = calls[-1].id if calls else last_call
        answers = message.tool_call_id or (last_call if message.role == "function" else "")
        read.append(
            Message(
                _ROLES.get(message.role, message.role),
                text_of(message.content, f"messages.{number}.content") or message.refusal or "",
                message.reasoning_content or message.reasoning or "",
                calls,
                answers,
                message.name or "",
            )
        )
    return tuple(read)
