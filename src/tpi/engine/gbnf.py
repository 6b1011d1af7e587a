"""Grammars in llama.cpp's form (GBNF) as Lark. Pure."""

import json
import re
from collections.abc import Iterator

from tpi.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SKIPPED = re.compile(r"(?:[ \t]|#[^\n]*)*")
_SKIPPED_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_TIMES = re.compile(r"[*+?]|\{ *[0-9]+ *(?:, *[0-9]* *)?\}")
_LITERAL = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_CLASS = re.compile(r"\[(?:[^\]\\]|\\.)*\]", re.DOTALL)
_CHARACTER = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)|.", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_MAX_DEPTH = 100


def gbnf_to_lark(text: str) -> str:
    """Raises:
    UsageError: it is no such grammar; the sentence names the line.
    """
    return _Converter(text).convert()


class _Converter:
    def __init__(self, text: str) -> None:
        self._text, self._position, self._depth = text, 0, 0
        self._named: set[str] = set()
        self._used: set[str] = set()

    def convert(self) -> str:
        rules = list[str]()
        self._skip(_SKIPPED_LINES)
        while self._position < len(self._text):
            name = self._match(_NAME, "the name of a rule")
            self._skip(_SKIPPED)
            if not self._take("::="):
                raise self._error("::=")
            self._named.add(name)
            self._skip(_SKIPPED_LINES)
            rules.append(f"{_rule(name)}: {self._choices(is_inner=False)}")
            self._skip(_SKIPPED_LINES)
        missing = sorted({"root", *self._used} - self._named)
        if missing:
            raise UsageError(f"the grammar has no rule {missing[0]!r}")
        return "\n".join(rules)

    def _choices(self, *, is_inner: bool) -> str:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UsageError(f"the grammar is nested more than {_MAX_DEPTH} deep: make it flatter")
        choices = [self._sequence(is_inner)]
        while self._take("|"):
            self._skip(_SKIPPED_LINES)
            choices.append(self._sequence(is_inner))
        self._depth -= 1
        return " | ".join(choices)

    def _sequence(self, is_inner: bool) -> str:
        parts = list[str]()
        while (part := self._part(is_inner)) is not None:
            while times := _TIMES.match(self._text, self._position):
                self._position = times.end()
                part = f"({part}){times[0].replace(' ', '')}"
            parts.append(part)
            self._skip(_SKIPPED_LINES if is_inner else _SKIPPED)
        return " ".join(parts) or '""'

    def _part(self, is_inner: bool) -> str | None:
        character = self._text[self._position : self._position + 1]
        if character == '"':
            text = self._match(_LITERAL, "a text in quotes")[1:-1]
            return json.dumps("".join(character for character, _ in _characters(text)))
        if character == "[":
            return f"/[{_class(self._match(_CLASS, 'a class of characters')[1:-1])}]/"
        if self._take("."):
            return "/(?s:.)/"
        if self._take("("):
            self._skip(_SKIPPED_LINES)
            body = self._choices(is_inner=True)
            if not self._take(")"):
                raise self._error("a closing bracket")
            return f"({body})"
        if name := _NAME.match(self._text, self._position):
            # The next rule begins on a line of its own.
            self._position = name.end()
            self._used.add(name[0])
            return _rule(name[0])
        return None

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._position)
        assert found is not None, "it matches nothing as well"
        self._position = found.end()

    def _take(self, text: str) -> bool:
        is_there = self._text.startswith(text, self._position)
        self._position += len(text) if is_there else 0
        return is_there

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._position)
        if found is None:
            raise self._error(what)
        self._position = found.end()
        return found[0]

    def _error(self, what: str) -> UsageError:
        line = self._text.count("\n", 0, self._position) + 1
        there = self._text[self._position : self._position + 20]
        return UsageError(f"line {line} of the grammar has no {what} at {there!r}")


def _characters(text: str) -> Iterator[tuple[str, bool]]:
    """Of a text with escapes; with each, whether it was escaped."""
    for match in _CHARACTER.finditer(text):
        piece = match[0]
        if len(piece) == 1:
            yield piece, False
        elif piece[1] in "xuU" and len(piece) > 2:
            code = int(piece[2:], 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise UsageError(f"{piece} in the grammar is no character")
            yield chr(code), True
        else:
            yield _ESCAPES.get(piece[1], piece[1]), True


def _class(text: str) -> str:
    """A class of characters, as expressions have it."""
    parts = list[str]()
    for place, (character, is_escaped) in enumerate(_characters(text)):
        is_sign = not is_escaped and (character == "-" or (character == "^" and not place))
        parts.append(character if is_sign or character.isalnum() else f"\\x{{{ord(character):x}}}")
    return "".join(parts)


def _rule(name: str) -> str:
    """As Lark names rules."""
    if name == "root":
        return "start"
    return "g_" + re.sub(r"[^a-z0-9_]", lambda match: f"_{ord(match[0]):x}_", name)
