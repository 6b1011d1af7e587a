"""Calls of gpt-oss: messages to a function, in the channel of commentary. ``reader`` reads channels."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpi.engine.dialects.calls import CallSink, Rules, schema_of
from tpi.engine.dialects.source import Malformed, Steps, TextSource
from tpi.engine.turns import Tool


@dataclass(frozen=True, slots=True)
class HarmonyCalls:
    """One a turn: the model ends it with each."""

    begins_bare = ""

    @property
    def openers(self) -> tuple[str, ...]:
        return ("<|channel|>commentary to=functions.",)

    @property
    def marks(self) -> tuple[str, ...]:
        return self.openers

    def read(self, source: TextSource, sink: CallSink, tools: Sequence[Tool]) -> Steps[None]:
        raise Malformed
        yield

    def rules(self, rules: Rules, tools: Sequence[Tool], *, is_many: bool) -> str:
        start = rules.text(" <|constrain|>json<|message|>")
        return rules.rule(
            " | ".join(f"{rules.text(tool.name)} {start} {rules.json(schema_of(tool))}" for tool in tools)
        )
