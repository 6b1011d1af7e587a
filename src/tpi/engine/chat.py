"""Chat messages to the text that a model was trained on, by the template in its file.

Which parts of the text users wrote is kept, so that their words never become special tokens. Knows no vocabulary
(``prompt`` turns the segments into tokens). Master only, any thread.

How users' words are found in the text: the template runs a second time with unguessable words in place of contents,
thinking, arguments and descriptions, and where those come out, these (as they are, trimmed, or as JSON) must stand in
the first text.
"""

import functools
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tpi.engine.sandbox import ChatEnvironment, TemplateRefusal, render_within_bounds
from tpi.engine.templateinput import Leaves, TemplateInput, TemplateTraits, variables_of
from tpi.engine.turns import Message, Tool, ToolCall
from tpi.errors import ModelFileError, UsageError

MAX_TEMPLATE_CHARS = 1 << 18

# For files without a template: base models have read enough dialogues to go on with one.
_DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content | trim }}\n\n"
    "{% else %}{{ message.role | capitalize }}: {{ message.content | trim }}\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_DEFAULT_STOPS = ("\nUser:",)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the rendered text."""

    text: str
    is_user_content: bool
    """Written by whoever wrote a message, not by the template: never to be read as special tokens."""


class ChatTemplate:
    """The chat template of one model.

    Args:
        source: the Jinja text of ``tokenizer.chat_template``; None or blank takes a plain ``User: … Assistant:``.
        bos_token: text of the model's begin token, for templates that write it.
        eos_token: text of the model's end token.
        clock: local time, for templates that tell the date.

    Raises:
        ModelFileError: the template is too long or no Jinja.
    """

    def __init__(
        self,
        source: str | None,
        bos_token: str = "",
        eos_token: str = "",
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source or ""
        self._is_default = source is None or not source.strip()
        source = _DEFAULT_TEMPLATE if source is None or self._is_default else source
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelFileError(
                f"the model's chat template has {len(source):,} characters, the limit is {MAX_TEMPLATE_CHARS:,}; {_RAW}"
            )
        try:
            self._template = ChatEnvironment(clock).from_string(source)
        except Exception as error:  # a stranger's program may fail in any way
            raise ModelFileError(f"the model's chat template is damaged: {_one_line(error)}; {_RAW}") from error
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings that this template needs, since no special token ends its turns."""
        return _DEFAULT_STOPS if self._is_default else ()

    @functools.cached_property
    def traits(self) -> TemplateTraits:
        """Found by trying."""
        properties = {"probe_key": {"type": "string", "description": "d"}}
        tool = Tool("probe_tool", "d", {"type": "object", "properties": properties, "required": ["probe_key"]})
        call = ToolCall("probecall", "probe_tool", '{"probe_key": "probe_value"}')
        user = Message("user", "probe_user")
        chat = (
            user,
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "probe_result", name="probe_tool", tool_call_id="probecall"),
            user,
        )
        knows_tools = "probe_tool" in self._try_text(TemplateInput((user,), (tool,)))
        inside = TemplateTraits(False, False, False, False, True, has_tools_inside=True)
        with_system = TemplateInput((Message("system", "s"), user), (tool,))
        is_inside = not knows_tools and "probe_tool" in self._try_text(with_system, inside)
        system = self._try_text(TemplateInput((Message("system", "probe_system"), user)))
        tried = [
            TemplateTraits(knows_tools, True, as_text, no_content, "probe_system" in system, is_inside)
            for no_content in (False, True)
            for as_text in (False, True)
        ]
        for traits in tried:
            text = self._try_text(TemplateInput(chat, (tool,)), traits)
            if "probe_value" in text and "{'probe_key'" not in text:
                return traits
        return replace(tried[0], knows_calls=False)

    def _try_text(self, asked: TemplateInput, traits: TemplateTraits | None = None) -> str:
        try:
            return self._render(asked, Leaves(), traits)
        except UsageError:
            return ""

    def render(self, asked: TemplateInput, is_suspect: Callable[[str], bool]) -> tuple[Segment, ...]:
        """The chat as text; the segments joined are exactly what the template gives.

        A template that changes texts (other than trimming them, or writing them as JSON) gives one segment, unless a
        text is suspect.

        Args:
            asked: at least one message.
            is_suspect: whether a text holds the text of special tokens.

        Raises:
            UsageError: the template refuses the messages, fails with them or exceeds its bounds, or changes a suspect
                text so that it cannot be told apart.
        """
        traits = self.traits if asked.tools or any(message.tool_calls for message in asked.messages) else None
        leaves = Leaves()
        text = self._render(asked, leaves, traits)
        for other in leaves.others:
            if is_suspect(other):
                raise UsageError(
                    f"{other[:80]!r}, a name or another word that the chat template reads, holds the text of a special "
                    "token: take that out"
                )
        suspects = [number for number, written in enumerate(leaves.texts) if is_suspect(written)]
        for marked in (None, suspects):
            segments = self._segments(text, asked, traits, leaves.texts, marked)
            if segments is not None:
                return segments
        raise UsageError(
            f"{_place(asked, leaves.texts[suspects[0]])} holds the text of a special token and the model's chat "
            f"template changes it: take that text out; {_RAW}"
        )

    def render_begun(self, asked: TemplateInput, is_suspect: Callable[[str], bool]) -> tuple[Segment, ...] | None:
        """As ``render``, up to the end of the last message's content, where an answer goes on; None where the template
        leaves that out or the thinking before it. Raises as ``render``."""
        last, mark = asked.messages[-1], secrets.token_hex(16)
        # Behind the mark a space tells whether the template trims contents.
        marked = replace(last, content=f"{last.content}{mark} ")
        messages = (*asked.messages[:-1], marked)
        segments = self.render(replace(asked, messages=messages, add_generation_prompt=False), is_suspect)
        text = "".join(segment.text for segment in segments)
        place = text.rfind(mark)
        if place < 0 or any(part.strip() not in text for part in (last.content, last.reasoning)):
            return None
        begun = text[:place] if text.startswith(" ", place + len(mark)) else text[:place].rstrip()
        return tuple(_first(segments, len(begun)))

    def _segments(
        self,
        text: str,
        asked: TemplateInput,
        traits: TemplateTraits | None,
        texts: Sequence[str],
        marked: Collection[int] | None,
    ) -> tuple[Segment, ...] | None:
        """The text cut where the marked texts begin and end; None if they are not found."""
        secret = secrets.token_hex(16)
        try:
            # Templates ask whether a content is blank, so a blank one stays.
            pattern = self._render(asked, Leaves(lambda number: f"{secret}n{number}e", marked), traits)
        except UsageError:
            return None
        literals = re.split(f"{secret}n([0-9]+)e", pattern)
        if secret in "".join(literals[::2]):
            return None
        return _align(text, literals[::2], [texts[int(number)] for number in literals[1::2]])

    def _render(self, asked: TemplateInput, leaves: Leaves, traits: TemplateTraits | None) -> str:
        variables = {**variables_of(asked, traits, leaves), **self._tokens}
        try:
            return render_within_bounds(self._template, variables)
        except TemplateRefusal as error:
            raise UsageError(f"the model's chat template refuses the messages: {_one_line(error)}; {_RAW}") from error
        except Exception as error:  # a stranger's program may fail in any way
            raise UsageError(f"the model's chat template fails: {_one_line(error)}; {_RAW}") from error


_RAW = "a raw prompt needs no template"


def _first(segments: Iterable[Segment], n_chars: int) -> Iterator[Segment]:
    """So many characters of them."""
    for segment in segments:
        if n_chars > 0:
            yield replace(segment, text=segment.text[:n_chars])
            n_chars -= len(segment.text)


def _align(text: str, literals: Sequence[str], contents: Sequence[str]) -> tuple[Segment, ...] | None:
    """Segments of ``literal, content, literal, …, literal``, if the text is that but for trimmed contents."""
    if not text.startswith(literals[0]):
        return None
    segments = [Segment(literals[0], is_user_content=False)]
    position = len(literals[0])
    for content, literal in zip(contents, literals[1:], strict=True):
        for candidate in _written(content):
            if text.startswith(candidate + literal, position):
                break
        else:
            return None
        segments += [Segment(candidate, is_user_content=True), Segment(literal, is_user_content=False)]
        position += len(candidate) + len(literal)
    if position != len(text):
        return None
    return tuple(segment for segment in segments if segment.text)


def _written(text: str) -> Iterator[str]:
    """As templates write a text: as it is, or trimmed, or as JSON."""
    trimmed = (text, text.rstrip(), text.lstrip(), text.strip())
    yield from trimmed
    for part in trimmed:
        for is_ascii in (False, True):
            yield json.dumps(part, ensure_ascii=is_ascii)[1:-1]


def _place(asked: TemplateInput, text: str) -> str:
    number = next((number for number, message in enumerate(asked.messages) if message.content == text), None)
    return "a text of the tools or their calls" if number is None else f"message {number + 1}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"
