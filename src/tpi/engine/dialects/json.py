"""JSON as it comes: members of an object one after the other, values passed on while they grow. Pure."""

import json
from collections.abc import Callable

from tpi.engine.dialects.source import Malformed, Steps, TextSource

MAX_NAME_CHARS = 1024


def read_string(source: TextSource) -> Steps[str]:
    """A string, without its quotes and escapes."""
    text = list[str]()
    yield from read_value(source, text.append)
    try:
        value = json.loads("".join(text), strict=False)
    except ValueError:
        raise Malformed from None
    if not isinstance(value, str):
        raise Malformed
    return value


def read_value(source: TextSource, tell: Callable[[str], None]) -> Steps[None]:
    """Tells the text of a value as it comes. It ends where its brackets, or its quotes, are closed; whether it is JSON
    beyond that is not looked at."""
    first = yield from source.skip_space()
    if first == '"':
        yield from _read_quoted(source, tell)
    elif first and first in "{[":
        depth = 0
        while True:
            character = yield from source.peek()
            if character == '"':
                yield from _read_quoted(source, tell)
                continue
            tell((yield from source.take()))
            depth += (character in "{[") - (character in "}]")
            if not depth:
                return
    else:
        n_taken = 0
        while (character := (yield from source.peek())) and (character.isalnum() or character in "+-."):
            tell((yield from source.take()))
            n_taken += 1
        if not n_taken and first:
            raise Malformed


def _read_quoted(source: TextSource, tell: Callable[[str], None]) -> Steps[None]:
    tell((yield from source.take()))
    while True:
        character = yield from source.take()
        if character == "\\":
            tell(character + (yield from source.take()))
            continue
        tell(character)
        if character == '"':
            return
