"""An answer read in its model's dialect: thinking, words, calls of tools as they come. One per answer, one thread."""

import secrets
from collections.abc import Callable, Sequence

from tpi.engine.dialects.dialect import Dialect
from tpi.engine.dialects.source import Ended, Malformed, Steps, TextSource
from tpi.engine.generation import Delta
from tpi.engine.reading import ChatDelta
from tpi.engine.turns import Tool, ToolCallDelta


def make_call_id(is_short: bool) -> str:
    return secrets.token_hex(8)[:9] if is_short else f"call_{secrets.token_hex(12)}"


class DialectReader:
    """Without tools, what looks like a call is content. ``starts_thinking``: the prompt has opened it. What is no call
    after all is content, too: nothing is lost."""

    def __init__(
        self,
        dialect: Dialect,
        tools: Sequence[Tool] = (),
        *,
        starts_thinking: bool = False,
        is_begun: bool = False,
        make_id: Callable[[bool], str] = make_call_id,
    ) -> None:
        """``starts_thinking``: the prompt has opened the thinking; ``is_begun``: it holds the first words."""
        self._is_begun = is_begun
        self._dialect, self._tools, self._make_id = dialect, tools, make_id
        self._source, self._told = TextSource(), _Told()
        self._thinks = starts_thinking
        self._n_tokens = 0
        self.n_reasoning_tokens = 0
        self._n_calls = 0
        self._has_begun = False
        """A call, in the section that is being read."""
        self._strips = False
        """White space that comes next stands between parts."""
        self._space = ""
        """White space at the end of what was told, which may turn out to."""
        self._steps = self._read()
        next(self._steps, None)

    def push(self, delta: Delta) -> ChatDelta:
        thought = self._thinks
        self._source.push(delta.text)
        next(self._steps, None)
        if thought or self._thinks:
            self.n_reasoning_tokens += delta.n_tokens - self._n_tokens
        self._n_tokens = delta.n_tokens
        return self._told.take(delta)

    def end(self) -> ChatDelta:
        self._source.end()
        next(self._steps, None)
        return self._told.take(Delta("", self._n_tokens))

    # What is read.

    def _read(self) -> Steps[None]:
        try:
            if self._dialect.is_harmony:
                yield from self._read_channels()
            else:
                yield from self._read_parts()
        except Ended:
            rest = self._source.take_rest()
            if not self._has_begun and "<|channel|>" not in rest:
                self._say(rest)
        self._told.content.append(self._space)

    def _read_parts(self) -> Steps[None]:
        tags, calls = self._dialect.thinking, self._dialect.calls
        if self._thinks:
            yield from self._think()
        openers = calls.openers if self._tools else ()
        if not self._is_begun:
            first = yield from self._source.skip_space()
            if self._tools and first and first == calls.begins_bare:
                yield from self._call()
        thinks = () if tags is None else (tags.opener,)
        while marker := (yield from self._source.take_until((*openers, *thinks, *self._dialect.silent), self._say)):
            if marker in openers:
                yield from self._call()
            elif marker in thinks and not self._told.has_content:
                self._source.settle()
                yield from self._think()
            elif marker in thinks:
                self._say(marker)
            else:
                self._source.settle()

    def _think(self) -> Steps[None]:
        assert self._dialect.thinking is not None
        self._thinks, self._strips = True, True
        yield from self._source.take_until((self._dialect.thinking.closer,), self._reason)
        self._source.settle()
        self._thinks, self._strips, self._space = False, True, ""

    def _call(self) -> Steps[None]:
        self._has_begun = False
        try:
            yield from self._dialect.calls.read(self._source, self, self._tools)
            self._source.settle()
        except Malformed:
            self._say(self._source.take_untold())
        else:
            self._strips, self._space = True, ""

    def _read_channels(self) -> Steps[None]:
        source, ends = self._source, ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
        while True:
            pieces = list[str]()
            if not (yield from source.take_until(("<|message|>",), pieces.append)):
                raise Ended
            head = "".join(pieces)
            channel = head.partition("<|channel|>")[2].split("<")[0].split()
            recipient = head.partition("to=")[2].split("<")[0].split()
            if recipient and self._tools:
                source.settle()
                self.begin(recipient[0].removeprefix("functions."))
                end = yield from source.take_until(ends, self.grow)
                self.end_call()
            elif channel[:1] == ["analysis"]:
                source.settle()
                self._thinks, self._strips = True, True
                end = yield from source.take_until(ends, self._reason)
                self._thinks, self._strips, self._space = False, True, ""
            else:
                source.settle()
                end = yield from source.take_until(ends, self._say)
            source.settle()
            if not end:
                return
            if end != "<|start|>":
                yield from source.try_take("<|start|>")

    # What is told.

    def begin(self, name: str, call_id: str = "") -> None:
        self._has_begun, self._strips, self._space = True, True, ""
        call_id = call_id or self._make_id(self._dialect.short_ids)
        self._told.calls.append(ToolCallDelta(self._n_calls, call_id, name))
        self._source.settle()

    def grow(self, arguments: str) -> None:
        self._told.calls.append(ToolCallDelta(self._n_calls, arguments=arguments))
        self._source.settle()

    def end_call(self) -> None:
        self._n_calls += 1
        self._source.settle()

    def _say(self, text: str) -> None:
        if text := self._stripped(text):
            self._told.content.append(text)
            self._told.has_content = True
        self._source.settle()

    def _reason(self, text: str) -> None:
        self._told.reasoning.append(self._stripped(text))
        self._source.settle()

    def _stripped(self, text: str) -> str:
        """White space between parts is left out, at the end of one as soon as it is clear that it is the end."""
        text = self._space + text
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return kept


class _Told:
    """What can be told next."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ToolCallDelta] = []
        self.has_content = False

    def take(self, delta: Delta) -> ChatDelta:
        calls = list[ToolCallDelta]()
        for part in self.calls:
            if calls and not part.name and calls[-1].index == part.index:
                last = calls.pop()
                part = ToolCallDelta(last.index, last.id, last.name, last.arguments + part.arguments)
            calls.append(part)
        told = ChatDelta("".join(self.content), "".join(self.reasoning), tuple(calls), delta.logprobs, delta.n_tokens)
        self.content, self.reasoning, self.calls = [], [], []
        return told
