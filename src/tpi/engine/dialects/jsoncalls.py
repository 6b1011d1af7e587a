"""Calls that are JSON objects with name and arguments: Hermes and Qwen, Llama, Mistral until 7, Command, Granite, Phi,
Hunyuan, Nemotron, Apertus. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tpi.engine.dialects.calls import CallSink, Rules, checked_name, find_tool, repeated, schema_of
from tpi.engine.dialects.json import read_string, read_value
from tpi.engine.dialects.source import Ended, Malformed, Steps, TextSource
from tpi.engine.turns import Tool


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Objects, each between ``opener`` and ``closer``; or, in an array, all of them."""

    opener: str
    closer: str = ""
    line: str = ""
    """What stands after an opener and before a closer."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    leading_key: str = ""
    """A member that comes before the name, and counts the calls."""
    is_array: bool = False
    joint: str = ""
    """Between calls that follow the same opener."""
    begins_bare: str = ""
    is_keyed: bool = False
    """The name is the only key, and its value are the arguments."""
    array: tuple[str, str, str] = ("[", ", ", "]")
    """What begins it, stands between calls, and ends it."""
    other_openers: tuple[str, ...] = ()
    """Which some models write; nothing need close these."""

    @property
    def openers(self) -> tuple[str, ...]:
        return (self.opener, *self.other_openers)

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openers, self.closer)

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        character = yield from source.skip_space()
        if character == "[":
            yield from self._read_array(source, sink, tools)
        else:
            yield from self._read_call(source, sink, tools)
            while (yield from self._goes_on(source)):
                yield from self._read_call(source, sink, tools)
        if self.closer:
            yield from source.skip_space()
            if self.other_openers:
                yield from source.try_take(self.closer.strip())
            else:
                yield from source.expect(self.closer)

    def _goes_on(self, source: TextSource) -> Steps[bool]:
        """Whether another object follows."""
        character = yield from source.skip_space()
        return bool(self.joint and (yield from source.try_take(self.joint))) or bool(self.closer and character == "{")

    def _read_array(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        yield from source.expect("[")
        while True:
            yield from self._read_call(source, sink, tools)
            yield from source.skip_space()
            if (yield from source.try_take("]")):
                return
            yield from source.expect(",")

    def _read_call(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        yield from source.skip_space()
        yield from source.expect("{")
        name, early, has_begun = "", list[str](), False
        if self.is_keyed:
            yield from source.skip_space()
            sink.begin(checked_name((yield from read_string(source))))
            yield from source.skip_space()
            yield from source.expect(":")
            yield from read_value(source, sink.grow)
            sink.end_call()
            yield from source.skip_space()
            yield from source.expect("}")
            return
        while True:
            yield from source.skip_space()
            if (yield from source.try_take("}")):
                break
            key = yield from read_string(source)
            yield from source.skip_space()
            yield from source.expect(":")
            if key == self.name_key and not name:
                name = checked_name((yield from read_string(source)))
                if self.begins_bare and find_tool(name, tools) is None:
                    raise Malformed
            elif key in (self.arguments_key, "arguments", "parameters") and not has_begun:
                has_begun = yield from self._read_arguments(source, sink, name, early)
            else:
                yield from read_value(source, lambda _: None)
            if name and early and not has_begun:
                sink.begin(name)
                sink.grow("".join(early))
                has_begun = True
            yield from source.skip_space()
            if not (yield from source.try_take(",")):
                yield from source.expect("}")
                break
        if not name:
            raise Malformed
        if not has_begun:
            sink.begin(name)
            sink.grow("{}")
        sink.end_call()

    def _read_arguments(self, source: TextSource, sink: CallSink, name: str, early: list[str]) -> Steps[bool]:
        """Whether the call has begun; where no name has come yet, the text is left in ``early``."""
        character = yield from source.skip_space()
        if not character:
            raise Ended
        if character == '"':  # JSON in a text
            text = yield from read_string(source)
            early.append(text)
            return False
        if name:
            sink.begin(name)
            yield from read_value(source, sink.grow)
            return True
        yield from read_value(source, early.append)
        return False

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        calls = rules.rule(" | ".join(self._call(rules, tool) for tool in tools))
        line = rules.text(self.line) if self.line else ""
        if self.is_array:
            start, joint, end = map(rules.text, self.array)
            closer = rules.text(self.closer) if self.closer else ""
            return f"{line} {start} {repeated(calls, joint, is_many=is_many)} {end} {closer}"
        if not self.closer:
            return calls  # more than one is read, but templates do not take them back
        body = rules.rule(f"{line} {calls} {line} {rules.text(self.closer)}")
        return repeated(body, f"{rules.text(chr(10))} {rules.text(self.opener)}", is_many=is_many)

    def _call(self, rules: Rules, tool: Tool) -> str:
        leading = f'"{self.leading_key}": "' if self.leading_key else ""
        start = f'"{self.name_key}": {json.dumps(tool.name)}, "{self.arguments_key}": '
        arguments = rules.json(schema_of(tool))
        if self.is_keyed:
            start = f"{json.dumps(tool.name)}: "
        if leading:
            number = rules.rule("/[0-9]{1,3}/")
            head = f"{rules.text('{' + leading)} {number} {rules.text(chr(34) + ', ' + start)}"
        else:
            head = rules.text("{" + start)
        return rules.rule(f"{head} {arguments} {rules.text('}')}")


HERMES = JsonCalls("<tool_call>", "</tool_call>", line="\n")
LLAMA = JsonCalls("<|python_tag|>", arguments_key="parameters", joint=";", begins_bare="{")
LLAMA_4_JSON = JsonCalls("<|python_start|>", arguments_key="parameters", joint=";", begins_bare="{")
MISTRAL_ARRAY = JsonCalls("[TOOL_CALLS]", is_array=True)
COMMAND = JsonCalls(
    "<|START_ACTION|>", "<|END_ACTION|>", name_key="tool_name", arguments_key="parameters",
    leading_key="tool_call_id", is_array=True, array=("[\n    ", ",\n    ", "\n]"),
)  # fmt: skip
OLD_COMMAND = JsonCalls(
    "Action:\n```json", "\n```", line="\n", name_key="tool_name", arguments_key="parameters", is_array=True,
    other_openers=("Action: ```json",),
)  # fmt: skip
GRANITE = JsonCalls("<|tool_call|>", is_array=True)
PHI = JsonCalls("<|tool_call|>", "<|/tool_call|>", is_array=True, other_openers=("functools",))
FUNCTOOLS = JsonCalls("functools", is_array=True)
LISTED = JsonCalls("<tool_calls>", "</tool_calls>", is_array=True)
LINES = JsonCalls("<tool_calls>", "</tool_calls>", line="\n")
NEMOTRON = JsonCalls("<TOOLCALL>", "</TOOLCALL>", is_array=True)
APERTUS = JsonCalls("<|tools_prefix|>", "<|tools_suffix|>", is_array=True, is_keyed=True)
