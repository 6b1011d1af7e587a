"""Calls that begin with the tool's name, their arguments as JSON: Mistral from 11 on, DeepSeek to 3.1, Kimi. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpi.engine.dialects.calls import CallSink, Rules, checked_name, repeated, schema_of
from tpi.engine.dialects.json import read_value
from tpi.engine.dialects.jsoncalls import MISTRAL_ARRAY
from tpi.engine.dialects.source import Malformed, Steps, TextSource
from tpi.engine.turns import Tool

_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_CALL = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
_SEPARATOR = "<｜tool▁sep｜>"
_KIND = "function"
_KIMI_SECTION = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
_KIMI_CALL = ("<|tool_call_begin|>", "<|tool_call_end|>")
_KIMI_ARGUMENT = "<|tool_call_argument_begin|>"
_FENCE = ("\n```json\n", "\n```")


@dataclass(frozen=True, slots=True)
class MistralCalls:
    """``[TOOL_CALLS]name[ARGS]{…}`` and so on; an array, as older models write it, is read, too."""

    begins_bare = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return ("[TOOL_CALLS]",)

    @property
    def marks(self) -> tuple[str, ...]:
        return ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        if (yield from source.skip_space()) == "[":
            yield from MISTRAL_ARRAY.read(source, sink, tools)
            return
        name = yield from read_name(source, "[{")
        if (yield from source.try_take("[CALL_ID]")):
            yield from read_name(source, "[{")
        yield from source.try_take("[ARGS]")
        yield from read_call(source, sink, name)

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        calls = rules.rule(
            " | ".join(
                f"{rules.text(tool.name)} {rules.text('[ARGS]')} {rules.json(schema_of(tool))}" for tool in tools
            )
        )
        return repeated(calls, rules.text("[TOOL_CALLS]"), is_many=is_many)


@dataclass(frozen=True, slots=True)
class DeepSeekCalls:
    """Of V3 and R1, with the kind of tool and a fence around the arguments, or of V3.1, without both."""

    is_fenced: bool
    begins_bare = ""

    @property
    def example(self) -> str:
        kind, (before, behind) = (f"{_KIND}{_SEPARATOR}", _FENCE) if self.is_fenced else ("", (_SEPARATOR, ""))
        return f"{_SECTION[0]}{_CALL[0]}{kind}NAME{before}{{…}}{behind}{_CALL[1]}{_SECTION[1]}"

    @property
    def openers(self) -> tuple[str, ...]:
        return (_SECTION[0],)

    @property
    def marks(self) -> tuple[str, ...]:
        return (*_SECTION, *_CALL, _SEPARATOR)

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        while True:
            yield from source.skip_space()
            if (yield from source.try_take(_SECTION[1])):
                return
            yield from source.expect(_CALL[0])
            name = yield from read_name(source, "<")
            yield from source.expect(_SEPARATOR)
            if name == _KIND and (yield from self._is_kind(source)):
                name = yield from read_name(source, "\n`{")
            yield from source.skip_space()
            yield from source.try_take("```json")
            yield from read_call(source, sink, name)
            yield from source.skip_space()
            yield from source.try_take("```")
            yield from source.expect(_CALL[1])

    def _is_kind(self, source: TextSource) -> Steps[bool]:
        return (yield from source.skip_space()) != "{"

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        head = f"{_KIND}" if self.is_fenced else ""
        bodies = []
        for tool in tools:
            arguments = rules.json(schema_of(tool))
            if self.is_fenced:
                start = f"{rules.text(head)} {rules.text(_SEPARATOR)} {rules.text(tool.name + _FENCE[0])}"
                bodies.append(f"{start} {arguments} {rules.text(_FENCE[1])}")
            else:
                bodies.append(f"{rules.text(tool.name)} {rules.text(_SEPARATOR)} {arguments}")
        call = rules.rule(f"{rules.text(_CALL[0])} ({' | '.join(bodies)}) {rules.text(_CALL[1])}")
        joint = rules.text("\n") if self.is_fenced else ""
        return f"{repeated(call, joint, is_many=is_many)} {rules.text(_SECTION[1])}"


@dataclass(frozen=True, slots=True)
class KimiCalls:
    """Named like ``functions.NAME:0``, which is the call's id as well."""

    begins_bare = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return (_KIMI_SECTION[0],)

    @property
    def marks(self) -> tuple[str, ...]:
        return (*_KIMI_SECTION, *_KIMI_CALL, _KIMI_ARGUMENT)

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        while True:
            yield from source.skip_space()
            if (yield from source.try_take(_KIMI_SECTION[1])):
                return
            yield from source.expect(_KIMI_CALL[0])
            call_id = yield from read_name(source, "<{")
            yield from source.expect(_KIMI_ARGUMENT)
            name, _, number = call_id.removeprefix("functions.").rpartition(":")
            yield from read_call(source, sink, checked_name(name) if number.isdecimal() else call_id, call_id)
            yield from source.skip_space()
            yield from source.expect(_KIMI_CALL[1])

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        number, joint = rules.rule("/[0-9]{1,4}/"), rules.text(_KIMI_ARGUMENT)
        names = " | ".join(
            f"{rules.text(f'functions.{tool.name}:')} {number} {joint} {rules.json(schema_of(tool))}" for tool in tools
        )
        call = rules.rule(f"{rules.text(_KIMI_CALL[0])} ({names}) {rules.text(_KIMI_CALL[1])}")
        return f"{repeated(call, '', is_many=is_many)} {rules.text(_KIMI_SECTION[1])}"


def read_name(source: TextSource, ends: str) -> Steps[str]:
    """Up to one of the characters ``ends``. Raises ``Malformed``."""
    name = ""
    while (character := (yield from source.peek())) and character not in ends:
        name += yield from source.take()
        if len(name) > 256:
            raise Malformed
    return checked_name(name.strip())


def read_call(source: TextSource, sink: CallSink, name: str, call_id: str = "") -> Steps[None]:
    """Arguments, which are an object."""
    if (yield from source.skip_space()) not in ("{", ""):
        raise Malformed
    yield from source.try_take(" ")
    character = yield from source.peek()
    if character:
        sink.begin(name, call_id)
        yield from read_value(source, sink.grow)
        sink.end_call()
