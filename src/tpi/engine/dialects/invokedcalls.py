"""Calls in a section, names of tools and arguments as attributes of tags: MiniMax M2, DeepSeek from 3.2 on. Pure.

Texts stand there as they are, other values as JSON: which it is, an attribute says, or else the tool's schema.
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

_TEXT, _NO_TEXT = ' string="true"', ' string="false"'


@dataclass(frozen=True, slots=True)
class InvokedCalls:
    """``<section>`` (``<invoke name="…">`` (``<parameter name="…">`` VALUE ``</parameter>``)* ``</invoke>``)+
    ``</section>``, each of these with ``prefix``."""

    section: str
    prefix: str = ""
    tells_texts: bool = False
    """Parameters say whether they are texts."""
    begins_bare = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return (f"<{self.section}>",)

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self._section, self.prefix) if self.prefix else self._section

    @property
    def _section(self) -> tuple[str, str]:
        return f"<{self.section}>", f"</{self.section}>"

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        while True:
            yield from source.skip_space()
            if (yield from source.try_take(self._section[1])):
                return
            yield from source.expect(f'<{self.prefix}invoke name="')
            name = checked_name((yield from _read_until(source, '"')))
            yield from source.expect(">")
            yield from self._read_arguments(source, sink, name, find_tool(name, tools))

    def _read_arguments(self, source: TextSource, sink: CallSink, name: str, tool: Tool | None) -> Steps[None]:
        parameters = {parameter.name: parameter for parameter in parameters_of(tool)}
        start = "{"
        while True:
            yield from source.skip_space()
            if not (yield from source.try_take(f'<{self.prefix}parameter name="')):
                break
            key = yield from _read_until(source, '"')
            kind = yield from source.try_take(_TEXT, _NO_TEXT)
            yield from source.expect(">")
            text = yield from _read_until(source, f"</{self.prefix}parameter>")
            value = json.dumps(text, ensure_ascii=False) if kind == _TEXT else value_text(text, parameters.get(key))
            if start == "{":
                sink.begin(name)
            sink.grow(f"{start}{json.dumps(key, ensure_ascii=False)}: {value}")
            start = ", "
        if start == "{":
            sink.begin(name)
            sink.grow("{")
        sink.grow("}")
        sink.end_call()
        yield from source.expect(f"</{self.prefix}invoke>")

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        calls = rules.rule(" | ".join(self._call(rules, tool) for tool in tools))
        return f"{rules.text(chr(10))} {repeated(calls, '', is_many=is_many)} {rules.text(self._section[1])}"

    def _call(self, rules: Rules, tool: Tool) -> str:
        parts = [rules.text(f'<{self.prefix}invoke name="{tool.name}">\n')]
        for parameter in parameters_of(tool):
            part = rules.rule(self._argument(rules, parameter, tool))
            parts.append(part if parameter.is_required else f"{part}?")
        return rules.rule(" ".join((*parts, rules.text(f"</{self.prefix}invoke>\n"))))

    def _argument(self, rules: Rules, parameter: Parameter, tool: Tool) -> str:
        kind = (_TEXT if parameter.is_text else _NO_TEXT) if self.tells_texts else ""
        start = rules.text(f'<{self.prefix}parameter name="{parameter.name}"{kind}>')
        end = f"</{self.prefix}parameter>\n"
        if parameter.is_text:
            return f"{start} {text_choice(rules, parameter.schema, end)}"
        return f"{start} {rules.json(with_definitions(parameter.schema, tool))} {rules.text(end)}"


def _read_until(source: TextSource, end: str) -> Steps[str]:
    pieces = list[str]()
    if not (yield from source.take_until((end,), pieces.append)):
        raise Ended
    if len(text := "".join(pieces)) > 256 and end == '"':
        raise Malformed
    return text


MINIMAX = InvokedCalls("minimax:tool_call")
DSML, DSML_CALLS = (InvokedCalls(f"｜DSML｜{name}", "｜DSML｜", True) for name in ("function_calls", "tool_calls"))
