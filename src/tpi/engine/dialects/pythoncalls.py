"""Calls that look like Python's: Llama 4, LFM 2, OLMo 3. Pure.

Their values are Python's, or JSON's, of texts, numbers, lists and mappings; nothing is run.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tpi.engine.dialects.calls import (
    MAX_DEPTH,
    PYTHON_WORDS,
    CallSink,
    Parameter,
    Rules,
    find_tool,
    listed,
    parameters_of,
    repeated,
    with_definitions,
)
from tpi.engine.dialects.namedcalls import read_name
from tpi.engine.dialects.source import Ended, Malformed, Steps, TextSource
from tpi.engine.turns import Tool


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """``opener`` NAME(key=value, …) and so on ``closer``, in a list or one a line."""

    opener: str
    closer: str
    is_list: bool = True
    begins_bare: str = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return (self.opener,)

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, self.closer)

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        yield from source.skip_space()
        is_list = bool((yield from source.try_take("[")))
        while True:
            name = (yield from read_name(source, "(,[]{}<\"'=")).strip()
            yield from source.expect("(")
            if self.begins_bare and find_tool(name, tools) is None:
                raise Malformed
            yield from self._read_arguments(source, sink, name)
            yield from source.skip_space()
            if is_list and (yield from source.try_take("]")):
                break
            if not (yield from source.try_take(",")) and (is_list or (yield from source.peek()) in ("<", "")):
                break
            yield from source.skip_space()
        yield from source.skip_space()
        if not (yield from source.try_take(self.closer)) and not self.begins_bare:
            raise Malformed

    def _read_arguments(self, source: TextSource, sink: CallSink, name: str) -> Steps[None]:
        sink.begin(name)
        start = "{"
        while (yield from source.skip_space()) != ")":
            pieces = list[str]()
            if not (yield from source.take_until(("=",), pieces.append)):
                raise Ended
            value = yield from _read_value(source, 0)
            sink.grow(f"{start}{json.dumps(''.join(pieces).strip(), ensure_ascii=False)}: {value}")
            start = ", "
            if (yield from source.skip_space()) != ")":
                yield from source.expect(",")
        yield from source.expect(")")
        sink.grow("{}" if start == "{" else "}")
        sink.end_call()

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        calls = rules.rule(" | ".join(self._call(rules, tool) for tool in tools))
        if self.is_list:
            body = repeated(calls, rules.text(", "), is_many=is_many)
            return f"{rules.text('[')} {body} {rules.text(']' + ('' if self.begins_bare else self.closer))}"
        body = repeated(calls, rules.text("\n"), is_many=is_many)
        return f"{rules.text(chr(10))} {body} {rules.text(chr(10) + self.closer)}"

    def _call(self, rules: Rules, tool: Tool) -> str:
        parts = [
            (rules.rule(f"{rules.text(parameter.name + '=')} {_value(rules, parameter, tool)}"), parameter.is_required)
            for parameter in parameters_of(tool)
        ]
        return rules.rule(f"{rules.text(tool.name + '(')} {listed(parts, rules.text(', '))} {rules.text(')')}")


def _value(rules: Rules, parameter: Parameter, tool: Tool) -> str:
    """JSON, or what Python writes otherwise where a value is nothing else: texts in single quotes, two words."""
    schema = parameter.schema
    if isinstance(schema, dict) and schema.get("type") == "boolean":
        return f"({rules.text('True')} | {rules.text('False')})"
    value = rules.json(with_definitions(schema, tool))
    if parameter.is_text and not set(schema) - {"type", "description", "title", "default"}:
        text = rules.rule(r"/'[^'\\\n]*'/")
        return f"({value} | {text})"
    return value


def _read_value(source: TextSource, depth: int) -> Steps[str]:
    """As JSON."""
    if depth > MAX_DEPTH:
        raise Malformed
    first = yield from source.skip_space()
    if first in ("'", '"'):
        return json.dumps((yield from _read_text(source)), ensure_ascii=False)
    if first not in ("{", "["):
        return (yield from _read_word(source))
    yield from source.take()
    end, parts = "}" if first == "{" else "]", list[str]()
    while (yield from source.skip_space()) != end:
        part = yield from _read_value(source, depth + 1)
        if first == "{":
            yield from source.skip_space()
            yield from source.expect(":")
            key = part if part.startswith('"') else json.dumps(part)
            part = f"{key}: {(yield from _read_value(source, depth + 1))}"
        parts.append(part)
        if (yield from source.skip_space()) != end:
            yield from source.expect(",")
    yield from source.take()
    return f"{first}{', '.join(parts)}{end}"


def _read_text(source: TextSource) -> Steps[str]:
    quote = yield from source.take()
    pieces = [quote]
    while True:
        character = yield from source.take()
        pieces.append(character)
        if character == "\\":
            pieces.append((yield from source.take()))
        elif character == quote:
            break
    try:
        return str(ast.literal_eval("".join(pieces).replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")))
    except (ValueError, SyntaxError):
        raise Malformed from None


def _read_word(source: TextSource) -> Steps[str]:
    word = ""
    while (character := (yield from source.peek())) and (character.isalnum() or character in "+-._"):
        word += yield from source.take()
        if len(word) > 256:
            raise Malformed
    if not character:
        raise Ended
    try:
        return PYTHON_WORDS.get(word) or json.dumps(json.loads(word))
    except ValueError:
        raise Malformed from None


LFM = PythonCalls("<|tool_call_start|>", "<|tool_call_end|>")
LLAMA_4 = PythonCalls("<|python_start|>", "<|python_end|>", begins_bare="[")
OLMO = PythonCalls("<function_calls>", "</function_calls>", is_list=False)
