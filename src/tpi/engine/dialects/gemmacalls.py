"""Calls of Gemma: ``call:NAME{key:value,…}``, with a mark of its own around texts, keys in alphabetical order. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpi.engine.dialects.calls import (
    MAX_DEPTH,
    CallSink,
    Rules,
    listed,
    parameters_of,
    repeated,
    text_choice,
    value_text,
    with_definitions,
)
from tpi.engine.dialects.namedcalls import read_name
from tpi.engine.dialects.source import Ended, Malformed, Steps, TextSource
from tpi.engine.turns import Tool


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    opener: str
    closer: str
    quote: str
    begins_bare = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return (self.opener,)

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, self.closer, self.quote)

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        yield from source.skip_space()
        yield from source.expect("call:")
        name = yield from read_name(source, "{")
        yield from source.expect("{")
        sink.begin(name)
        start = "{"
        while not (yield from self._ends(source, "}")):
            key = yield from self._read_key(source)
            value = yield from self._read_value(source, 0)
            sink.grow(f"{start}{json.dumps(key, ensure_ascii=False)}: {value}")
            start = ", "
        sink.grow("{}" if start == "{" else "}")
        sink.end_call()
        yield from source.skip_space()
        yield from source.expect(self.closer)

    def _ends(self, source: TextSource, end: str) -> Steps[bool]:
        """Whether a list does; else what comes next is a part of it."""
        yield from source.skip_space()
        if (yield from source.try_take(end)):
            return True
        yield from source.try_take(",")
        return False

    def _read_key(self, source: TextSource) -> Steps[str]:
        yield from source.skip_space()
        if (yield from source.try_take(self.quote)):
            key = yield from self._read_text(source)
            yield from source.skip_space()
            yield from source.expect(":")
            return key
        pieces = list[str]()
        if not (yield from source.take_until((":",), pieces.append)):
            raise Ended
        return "".join(pieces).strip()

    def _read_text(self, source: TextSource) -> Steps[str]:
        pieces = list[str]()
        if not (yield from source.take_until((self.quote,), pieces.append)):
            raise Ended
        return "".join(pieces)

    def _read_value(self, source: TextSource, depth: int) -> Steps[str]:
        """As JSON."""
        if depth > MAX_DEPTH:
            raise Malformed
        first = yield from source.skip_space()
        if (yield from source.try_take(self.quote)):
            return json.dumps((yield from self._read_text(source)), ensure_ascii=False)
        parts = list[str]()
        if first in ("{", "["):
            yield from source.take()
            while not (yield from self._ends(source, "}" if first == "{" else "]")):
                key = f"{json.dumps((yield from self._read_key(source)), ensure_ascii=False)}: " if first == "{" else ""
                parts.append(key + (yield from self._read_value(source, depth + 1)))
            return f"{first}{', '.join(parts)}{'}' if first == '{' else ']'}"
        while (character := (yield from source.peek())) and character not in ",}]":
            parts.append((yield from source.take()))
        if not character:
            raise Ended
        return value_text("".join(parts).strip())

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        calls = rules.rule(" | ".join(self._call(rules, tool) for tool in tools))
        return repeated(calls, rules.text(self.opener), is_many=is_many)

    def _call(self, rules: Rules, tool: Tool) -> str:
        parts = []
        for parameter in sorted(parameters_of(tool), key=lambda parameter: parameter.name.lower()):
            value = self._value(rules, with_definitions(parameter.schema, tool), 0)
            parts.append((rules.rule(f"{rules.text(parameter.name + ':')} {value}"), parameter.is_required))
        body = listed(parts, rules.text(","))
        return rules.rule(f"{rules.text(f'call:{tool.name}{{')} {body} {rules.text('}' + self.closer)}")

    def _value(self, rules: Rules, schema: Any, depth: int) -> str:
        """Texts, lists and objects have their own form, all else is JSON. What a schema says beyond types, in lists
        and objects without named members, is not looked at."""
        kind = schema.get("type") if isinstance(schema, dict) else None
        if kind == "string":
            return f"{rules.text(self.quote)} {text_choice(rules, schema, self.quote)}"
        if kind in ("integer", "number", "boolean", "null"):
            return rules.json(schema)
        if depth < 4 and kind == "array":
            item = rules.rule(self._value(rules, schema.get("items", {}), depth + 1))
            return f"{rules.text('[')} ({repeated(item, rules.text(','), is_many=True)})? {rules.text(']')}"
        if depth < 4 and kind == "object" and schema.get("properties"):
            needed = schema.get("required") or ()
            parts = [
                (rules.rule(f"{rules.text(key + ':')} {self._value(rules, inner, depth + 1)}"), key in needed)
                for key, inner in sorted(schema["properties"].items(), key=lambda item: item[0].lower())
            ]
            return f"{rules.text('{')} {listed(parts, rules.text(','))} {rules.text('}')}"
        return self._any(rules, kind)

    def _any(self, rules: Rules, kind: Any) -> str:
        text = f"{rules.text(self.quote)} {rules.until(self.quote)}"
        value = rules.rule(f"{text} | {rules.json({'type': ['number', 'boolean', 'null']})}")
        for _ in range(2):
            member = rules.rule(f"/[A-Za-z0-9_ -]+/ {rules.text(':')} {value}")
            lists = [
                f"{rules.text(start)} ({repeated(part, rules.text(','), is_many=True)})? {rules.text(end)}"
                for start, part, end in (("{", member, "}"), ("[", value, "]"))
            ]
            value = rules.rule(
                " | ".join(lists[:1] if kind == "object" else lists[1:] if kind == "array" else (value, *lists))
            )
            kind = None
        return value


GEMMA = GemmaCalls("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>")
