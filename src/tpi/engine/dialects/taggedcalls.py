"""Calls with a tag around every argument: Qwen 3 Coder and 3.5, Nemotron 3, Seed, GLM 4. Pure.

Texts stand there as they are, other values as JSON: which it is, the tool's schema says.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tpi.engine.dialects.calls import (
    CallSink,
    Parameter,
    Rules,
    checked_name,
    find_tool,
    parameters_of,
    repeated,
    text_choice,
    value_text,
    with_definitions,
)
from tpi.engine.dialects.source import Ended, Malformed, Steps, TextSource
from tpi.engine.turns import Tool


@dataclass(frozen=True, slots=True)
class TaggedCalls:
    """``opener`` ``head`` NAME ``head_end`` (``key`` KEY ``key_end`` ``value`` VALUE ``value_end``)* ``foot``
    ``closer``. Line breaks in ``value`` and ``value_end`` are not the value's."""

    head: str
    head_end: str
    key: str
    key_end: str
    value: str
    value_end: str
    foot: str
    opener: str = "<tool_call>"
    closer: str = "</tool_call>"
    line: str = "\n"
    """Between arguments."""
    begins_bare = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return (self.opener,)

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opener, self.closer, self.key, self.key_end, self.value, self.value_end, self.foot)

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        yield from source.skip_space()
        if self.head.strip():
            yield from source.expect(self.head.strip())
        name = yield from self._read_name(source)
        tool = find_tool(name, tools)
        parameters = {parameter.name: parameter for parameter in parameters_of(tool)}
        n_read = 0
        while True:
            yield from source.skip_space()
            if not (yield from source.try_take(self.key)):
                break
            key = (yield from self._read_text(source, self.key_end)).strip()
            if self.value.strip():
                yield from source.skip_space()
                yield from source.expect(self.value.strip())
            text = yield from self._read_text(source, self.value_end.strip())
            if self.value_end.startswith("\n"):
                text = text.removeprefix("\n").removesuffix("\n")
            value = value_text(text, parameters.get(key))
            if not n_read:
                sink.begin(name)
            sink.grow(("{" if not n_read else ", ") + json.dumps(key, ensure_ascii=False) + ": " + value)
            n_read += 1
        if not n_read:
            sink.begin(name)
            sink.grow("{")
        sink.grow("}")
        sink.end_call()
        if self.foot:
            yield from source.expect(self.foot)
            yield from source.skip_space()
        yield from source.expect(self.closer)

    def _read_name(self, source: TextSource) -> Steps[str]:
        """Up to ``head_end``, or a tag."""
        name = ""
        while (character := (yield from source.peek())) and character != "<":
            character = yield from source.take()
            if character in self.head_end:
                break
            name += character
            if len(name) > 256:
                raise Malformed
        if not character:
            raise Ended
        return checked_name(name.strip())

    def _read_text(self, source: TextSource, end: str) -> Steps[str]:
        pieces = list[str]()
        if not (yield from source.take_until((end,), pieces.append)):
            raise Ended
        return "".join(pieces)

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        calls = rules.rule(" | ".join(self._call(rules, tool) for tool in tools))
        return repeated(
            calls, f"{rules.text(self.line) if self.line else ''} {rules.text(self.opener)}", is_many=is_many
        )

    def _call(self, rules: Rules, tool: Tool) -> str:
        parts = [rules.text(f"{self.head}{tool.name}{self.head_end}")]
        for parameter in parameters_of(tool):
            part = rules.rule(self._argument(rules, parameter, tool))
            parts.append(part if parameter.is_required else f"{part}?")
        parts.append(rules.text(self.foot + ("\n" if self.foot else "") + self.closer))
        return rules.rule(" ".join(parts))

    def _argument(self, rules: Rules, parameter: Parameter, tool: Tool) -> str:
        start = rules.text(f"{self.key}{parameter.name}{self.key_end}{self.value}")
        end = f"{self.value_end}{self.line}"
        if parameter.is_text:
            return f"{start} {text_choice(rules, parameter.schema, end)}"
        return f"{start} {rules.json(with_definitions(parameter.schema, tool))} {rules.text(end)}"


QWEN_XML = TaggedCalls("\n<function=", ">\n", "<parameter=", ">", "\n", "\n</parameter>", "</function>")
SEED = TaggedCalls(
    "\n<function=",
    ">\n",
    "<parameter=",
    ">",
    "",
    "</parameter>",
    "</function>",
    "<seed:tool_call>",
    "</seed:tool_call>",
)
GLM = TaggedCalls("", "\n", "<arg_key>", "</arg_key>", "\n<arg_value>", "</arg_value>", "")
GLM_TIGHT = TaggedCalls("", "", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "", line="")
