"""Tools in OpenAI's words, which choice there is among them, and what calls look like. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tpi.api.description import Given
from tpi.api.errors import Problem, unsupported
from tpi.api.streams import Body
from tpi.api.values import json_text
from tpi.engine.turns import Tool, ToolCall, ToolCallDelta, ToolChoice

MAX_TOOLS = 512


class Function(Given):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class GivenTool(Given):
    """A function beside its type, or in it, as requests for responses have it."""

    type: str = "function"
    function: Function | None = None
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


Tools = Annotated[list[GivenTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class FunctionName(Given):
    name: str


class Allowed(Given):
    mode: str = "auto"
    tools: Tools = Field(default_factory=list)


class GivenChoice(Given):
    """One tool that has to be called, or those that may be."""

    type: str = "function"
    function: FunctionName | None = None
    name: str | None = None
    allowed_tools: Allowed | None = None
    mode: str = "auto"
    tools: Tools = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Choosing:
    """The tools that may be called, whether one must, and which."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = "auto"
    name: str = ""


def read_tools(given: Sequence[GivenTool] | None) -> tuple[Tool, ...]:
    """Raises:
    Problem: a tool is no function.
    """
    tools = list[Tool]()
    for number, tool in enumerate(given or ()):
        if tool.type != "function":
            raise unsupported(f"tools.{number}", f"a tool of type {tool.type!r}")
        function = tool.function or tool
        if not function.name:
            raise Problem(400, f"tools.{number} has no name", param=f"tools.{number}")
        parameters = function.parameters or {}
        json_text(parameters, f"tools.{number}.parameters")
        tools.append(Tool(function.name, function.description or "", parameters, bool(function.strict)))
    return tuple(tools)


def read_choice(tools: tuple[Tool, ...], given: str | GivenChoice | None) -> Choosing:
    """Raises:
    Problem: there is no such choice, or no such tool.
    """
    match given:
        case None | "auto":
            return Choosing(tools)
        case "none":
            return Choosing(tools, "none")
        case "required" | "any":
            check_some(tools)
            return Choosing(tools, "required")
        case GivenChoice(type="allowed_tools"):
            allowed = given.allowed_tools or Allowed(mode=given.mode, tools=given.tools)
            names = [known_tool(tools, tool.function.name if tool.function else tool.name) for tool in allowed.tools]
            some = tuple(tool for tool in tools if tool.name in names)
            return read_choice(some, allowed.mode)
        case GivenChoice(type="function"):
            return Choosing(tools, "required", known_tool(tools, given.function.name if given.function else given.name))
        case _:
            what = given if isinstance(given, str) else given.type
            raise unsupported("tool_choice", f"a choice of tools {what!r}")


def check_some(tools: Sequence[Tool]) -> None:
    """Raises:
    Problem: there is none.
    """
    if not tools:
        raise Problem(400, "a tool has to be called, and there is none: give tools", param="tool_choice")


def known_tool(tools: Sequence[Tool], name: str | None) -> str:
    """The name.

    Raises:
        Problem: it is none of theirs.
    """
    check_some(tools)
    names = [tool.name for tool in tools]
    if name not in names:
        raise Problem(400, f"there is no tool {name!r}, but {', '.join(names)[:200]}", param="tool_choice")
    return name


def calls_body(calls: Sequence[ToolCall]) -> list[Body]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def deltas_body(deltas: Sequence[ToolCallDelta]) -> list[Body]:
    """Of a call's beginning all, of what follows the arguments alone."""
    return [
        {
            "index": delta.index,
            **({"id": delta.id, "type": "function"} if delta.name else {}),
            "function": {**({"name": delta.name} if delta.name else {}), "arguments": delta.arguments},
        }
        for delta in deltas
    ]
