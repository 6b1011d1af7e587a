"""What a chat template is handed: messages, tools and variables, in the words that Hugging Face's templates know.

Every text that users wrote passes through ``Leaves``, which can put others in its place. Pure.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpi.engine.dialects.calls import TOOL_NAME
from tpi.engine.turns import Message, Tool, ToolCall
from tpi.errors import UsageError

MAX_DEPTH = 64
_RESERVED = frozenset(("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"))


@dataclass(frozen=True, slots=True)
class TemplateInput:
    """What is to be rendered."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    """End with the beginning of the assistant's turn."""


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What a model's template makes of tools."""

    knows_tools: bool
    knows_calls: bool
    wants_arguments_as_text: bool
    """JSON text, not the values."""
    wants_no_content: bool
    """Beside calls: not even an empty one."""
    knows_system: bool
    has_tools_inside: bool = False
    """They are JSON text in the system's message."""


class Leaves:
    """The texts that users wrote, numbered in the order in which they are met; of those in ``marked`` (all, if None)
    that are not blank, ``mark`` of the number takes the place."""

    def __init__(self, mark: Callable[[int], str] | None = None, marked: Collection[int] | None = None) -> None:
        self.texts: list[str] = []
        self.others: list[str] = []
        """Texts of users that always stay as they are."""
        self._mark, self._marked = mark, marked

    def text(self, text: str) -> str:
        number = len(self.texts)
        self.texts.append(text)
        if self._mark is None or not text.strip() or (self._marked is not None and number not in self._marked):
            return text
        return self._mark(number)

    def other(self, text: str) -> str:
        self.others.append(text)
        return text

    def value(
        self, value: Any, *, is_text: Callable[[str], bool] = lambda key: True, key: str = "", depth: int = 0
    ) -> Any:
        """JSON: its texts, as far as ``is_text`` of their keys.

        Raises:
            UsageError: it is nested too deeply.
        """
        if depth > MAX_DEPTH:
            raise UsageError(f"a schema, an argument or a variable is nested more than {MAX_DEPTH} deep: flatten it")
        if isinstance(value, str):
            return self.text(value) if is_text(key) else self.other(value)
        if isinstance(value, dict):
            return {
                self.other(name): self.value(part, is_text=is_text, key=name, depth=depth + 1)
                for name, part in value.items()
            }
        if isinstance(value, list):
            return [self.value(part, is_text=is_text, key=key, depth=depth + 1) for part in value]
        return value


def variables_of(asked: TemplateInput, traits: TemplateTraits | None, leaves: Leaves) -> dict[str, Any]:
    """Raises:
    UsageError: a variable has a name that is the template's own, a call the name of no tool, or one of them is nested
        too deeply.
    """
    for name in asked.variables:
        if name in _RESERVED:
            raise UsageError(f"the template's variable {name!r} cannot be set: it is made from the messages")
    messages = [_message(message, traits, leaves) for message in asked.messages]
    if traits is not None and traits.has_tools_inside and asked.tools and messages and messages[0]["role"] == "system":
        tools = [_tool(tool, Leaves())["function"] for tool in asked.tools]
        messages[0]["tools"] = leaves.text(json.dumps(tools, ensure_ascii=False))
    return {
        **{name: leaves.value(value, is_text=lambda _: False) for name, value in asked.variables.items()},
        "messages": messages,
        "add_generation_prompt": asked.add_generation_prompt,
        "tools": [_tool(tool, leaves) for tool in asked.tools] or None,
        "documents": None,
    }


def _message(message: Message, traits: TemplateTraits | None, leaves: Leaves) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": leaves.text(message.content)}
    if traits is not None and traits.wants_no_content and message.tool_calls and not message.content:
        made["content"] = None
    if message.reasoning:
        made["reasoning_content"] = made["thinking"] = leaves.text(message.reasoning)
    if message.tool_calls:
        as_text = traits is not None and traits.wants_arguments_as_text
        made["tool_calls"] = [_call(call, as_text, leaves) for call in message.tool_calls]
    if message.tool_call_id:
        made["tool_call_id"] = leaves.other(message.tool_call_id)
    if message.name:
        made["name"] = leaves.other(message.name)
    return made


def _call(call: ToolCall, as_text: bool, leaves: Leaves) -> dict[str, Any]:
    if not TOOL_NAME.fullmatch(call.name):
        raise UsageError(f"a call in the messages has the name {call.name[:80]!r}, which no tool can have")
    try:
        values = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    is_object = isinstance(values, dict) and not as_text
    arguments = leaves.value(values) if is_object else leaves.text(call.arguments or "{}")
    return {
        "id": leaves.other(call.id),
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _tool(tool: Tool, leaves: Leaves) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": leaves.text(tool.description),
            # Templates ask what else a schema says, so it stays.
            "parameters": leaves.value(dict(parameters), is_text=lambda key: key == "description"),
        },
    }
