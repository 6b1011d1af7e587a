"""What calls of tools are named in a chat, where a template or a model knows one form alone; callers may have theirs
from elsewhere. Pure."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from tpi.engine.turns import Message, ToolCall


def with_short_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Of nine letters and digits, as Mistral's templates want them."""
    return _renamed(messages, lambda call: _short(call.id))


def with_named_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """``functions.NAME:NUMBER``, as Kimi writes them."""
    count = itertools.count()
    return _renamed(messages, lambda call: f"functions.{call.name}:{next(count)}")


def _renamed(messages: Sequence[Message], name: Callable[[ToolCall], str]) -> tuple[Message, ...]:
    names, renamed = dict[str, str](), list[Message]()
    for message in messages:
        calls = tuple(replace(call, id=name(call)) for call in message.tool_calls)
        names |= {old.id: new.id for old, new in zip(message.tool_calls, calls, strict=True)}
        answered = message.tool_call_id
        if answered and answered not in names:  # of a call that is not there
            names[answered] = name(ToolCall(answered, message.name, ""))
        renamed.append(replace(message, tool_calls=calls, tool_call_id=names.get(answered, "")))
    return tuple(renamed)


def _short(call_id: str) -> str:
    is_short = len(call_id) == 9 and call_id.isascii() and call_id.isalnum()
    return call_id if is_short else hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]
