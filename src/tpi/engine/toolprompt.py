"""Tools for models whose chat template knows none: a text that tells of them, and calls and results as plain turns.

Where a template writes calls at least, these stay, and the text shows how they look; else they look as
``dialects.jsoncalls.HERMES`` reads them. Pure.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tpi.engine.turns import Message, Tool

_EXAMPLE = """\
<tool_call>
{"name": "…", "arguments": {…}}
</tool_call>"""


def with_tools(messages: Sequence[Message], tools: Sequence[Tool], *, knows_system: bool) -> tuple[Message, ...]:
    """The same chat, in nothing but the turns of system, user and assistant (without ``knows_system``, of the last
    two)."""
    turns = told_of_tools([_plain(message) for message in messages], tools)
    if not knows_system and turns and turns[0].role == "system":
        first = turns.pop(0)
        if turns and turns[0].role == "user":
            turns[0] = replace(turns[0], content=f"{first.content}\n\n{turns[0].content}")
        else:
            turns.insert(0, replace(first, role="user"))
    return tuple(_merged(turns))


def told_of_tools(messages: Sequence[Message], tools: Sequence[Tool], example: str = _EXAMPLE) -> list[Message]:
    """The same chat, with a text about the tools in front."""
    turns = list(messages)
    if not tools:
        return turns
    text = "You can call tools. Each line describes one, with the JSON schema of its arguments:\n\n"
    for tool in tools:
        text += json.dumps(described(tool), ensure_ascii=False) + "\n"
    text += "\nTo call a tool, write nothing but this, with its name and its arguments, and wait for the result:\n"
    if turns and turns[0].role == "system":
        turns[0] = replace(turns[0], content=f"{turns[0].content}\n\n{text}{example}")
    else:
        turns.insert(0, Message("system", text + example))
    return turns


def described(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'
        for call in message.tool_calls
    ]
    parts = [message.content.strip(), *calls] if message.content.strip() else calls
    return replace(message, content="\n".join(parts), tool_calls=())


def _merged(turns: Sequence[Message]) -> list[Message]:
    """Several results are one turn: some templates want user and assistant in turns."""
    merged = list[Message]()
    for turn in turns:
        if merged and turn.role == "user" == merged[-1].role and turn.content.startswith("<tool_response>"):
            merged[-1] = replace(merged[-1], content=f"{merged[-1].content}\n{turn.content}")
        else:
            merged.append(turn)
    return merged
