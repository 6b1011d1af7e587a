"""What a family's calls of tools look like: reading them, the rules of their grammar, writing them. Pure."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tpi.engine.dialects.source import Malformed, Steps, TextSource
from tpi.engine.turns import Tool
from tpi.errors import UsageError

TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
MAX_DEPTH = 64
"""Of values in values, where they are no JSON."""


class CallSink(Protocol):
    """Whoever is told what calls are read; with each, what was read so far is settled."""

    def begin(self, name: str, call_id: str = "") -> None:
        """``call_id``: as the model has it."""

    def grow(self, arguments: str) -> None:
        """More of the JSON text of the last one's arguments."""

    def end_call(self) -> None:
        """The last one is complete."""


class Rules(Protocol):
    """A grammar that is being written; what is given out stands for rules in other rules."""

    def text(self, text: str) -> str:
        """Exactly this; what the vocabulary has as one special token, as that."""

    def json(self, schema: object) -> str:
        """A JSON value that follows the schema."""

    def until(self, end: str) -> str:
        """Any text that ``end`` ends, which does not occur in it before."""

    def rule(self, body: str) -> str:
        """A new rule."""


class CallFormat(Protocol):
    """``openers`` begin calls; ``read`` reads what follows one of them, ``rules`` says what may follow the first."""

    @property
    def openers(self) -> tuple[str, ...]: ...

    @property
    def marks(self) -> tuple[str, ...]:
        """All that stands around and in calls, which may be special tokens."""

    @property
    def begins_bare(self) -> str:
        """The character with which an answer begins that is a call, and needs no opener; empty: none does."""

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        """Raises ``Malformed``, or ``Ended``."""

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        """One call, or any number of them if it ``is_many``, without the opener of the first."""


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    schema: Any
    is_required: bool

    @property
    def is_text(self) -> bool:
        """Written as it is; others are JSON."""
        return isinstance(self.schema, dict) and self.schema.get("type") == "string"


def parameters_of(tool: Tool | None) -> tuple[Parameter, ...]:
    """Those that its schema names."""
    properties = tool.parameters.get("properties") if tool is not None else None
    if tool is None or not isinstance(properties, dict):
        return ()
    required = tool.parameters.get("required")
    needed = required if isinstance(required, list) else ()
    return tuple(Parameter(name, schema, name in needed) for name, schema in properties.items())


def schema_of(tool: Tool) -> dict[str, Any]:
    """Of its arguments: an object, with no more than it names unless it says so."""
    return {"type": "object", "properties": {}, "additionalProperties": False, **tool.parameters}


def loosened(tool: Tool) -> Tool:
    """With the same arguments, of which only texts are told from other values."""
    kept = {parameter.name: {"type": "string"} if parameter.is_text else {} for parameter in parameters_of(tool)}
    needed = [parameter.name for parameter in parameters_of(tool) if parameter.is_required]
    schema = {"type": "object", "properties": kept, "required": needed, "additionalProperties": True}
    return replace(tool, parameters=schema)


def checked_name(name: str) -> str:
    """Raises ``Malformed`` for what is no tool's name."""
    if not TOOL_NAME.fullmatch(name):
        raise Malformed
    return name


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises:
    UsageError: a name that models could not write, or that two have.
    """
    names = [tool.name for tool in tools]
    for name in names:
        if not TOOL_NAME.fullmatch(name):
            raise UsageError(f"the tool's name {name[:80]!r} has other than 1 to 128 letters, digits and _ . : / -")
    if len(set(names)) < len(names):
        raise UsageError(f"two of the {len(names)} tools have the same name")


def find_tool(name: str, tools: Sequence[Tool]) -> Tool | None:
    return next((tool for tool in tools if tool.name == name), None)


def value_text(text: str, parameter: Parameter | None = None) -> str:
    """JSON of a value that was written without quotes: by the schema, else JSON (or one of Python's words, which some
    templates write) if it is that, else a text."""
    if parameter is None or not parameter.is_text:
        try:
            return PYTHON_WORDS.get(text) or json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


def with_definitions(schema: Any, tool: Tool) -> Any:
    """An argument's schema, with what it may refer to."""
    definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    return {**schema, **definitions} if isinstance(schema, dict) else schema


def text_choice(rules: Rules, schema: Any, end: str) -> str:
    """A rule's body: a text without quotes, one of those that the schema of an argument allows, and its end."""
    choices = schema.get("enum") if isinstance(schema, dict) else None
    if isinstance(choices, list) and choices:
        return f"({' | '.join(rules.text(str(choice)) for choice in choices)}) {rules.text(end)}"
    return rules.until(end)


def listed(parts: Sequence[tuple[str, bool]], joint: str) -> str:
    """A rule's body: in their order those parts that are required, and any others, with ``joint`` between them."""
    choices = list[str]()
    for number, (first, is_required) in enumerate(parts):
        rest = [f"({joint} {part})" + ("" if needed else "?") for part, needed in parts[number + 1 :]]
        choices.append(" ".join((first, *rest)))
        if is_required:
            break
    body = f"({' | '.join(choices)})" if choices else ""
    return body if any(needed for _, needed in parts) or not body else f"{body}?"


def repeated(first: str, joint: str, *, is_many: bool) -> str:
    """A rule's body: ``first``, and more of it after ``joint`` if it ``is_many``."""
    return f"{first} ({joint} {first})*" if is_many else first
