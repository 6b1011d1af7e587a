"""Chat messages to the text that a model was trained on, by the template in its file.

Which parts of the text users wrote is kept, so that their words never become special tokens. Knows no vocabulary
(``prompt`` turns the segments into tokens). Master only, any thread.

How users' words are found in the text: the template runs a second time with unguessable words in place of the
contents, and where those come out, the contents (as they are, or with spaces trimmed) must stand in the first text.
"""

import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from tpi.engine.sandbox import ChatEnvironment, TemplateRefusal, render_within_bounds
from tpi.engine.turns import Message
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
        self._is_default = source is None or not source.strip()
        source = _DEFAULT_TEMPLATE if source is None or self._is_default else source
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelFileError(
                f"the model's chat template has {len(source):,} characters, the limit is {MAX_TEMPLATE_CHARS:,}; "
                "use --raw for a prompt without template"
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

    def render(
        self,
        messages: Sequence[Message],
        is_suspect: Callable[[str], bool],
        *,
        add_generation_prompt: bool = True,
    ) -> tuple[Segment, ...]:
        """The chat as text; the segments joined are exactly what the template gives.

        A template that changes contents (other than trimming them) gives one segment, unless a content is suspect.

        Args:
            messages: at least one.
            is_suspect: whether a content holds the text of special tokens.
            add_generation_prompt: end with the beginning of the assistant's turn.

        Raises:
            UsageError: the template refuses the messages, or changes a suspect content so that it cannot be told apart.
            ModelFileError: the template fails or exceeds its bounds.
        """
        text = self._render(messages, [message.content for message in messages], add_generation_prompt)
        suspects = [index for index, message in enumerate(messages) if is_suspect(message.content)]
        for marked in (range(len(messages)), suspects):
            segments = self._segments(text, messages, marked, add_generation_prompt)
            if segments is not None:
                return segments
        raise UsageError(
            f"message {suspects[0] + 1} holds the text of a special token and the model's chat template changes it: "
            f"take that text out; {_RAW}"
        )

    def _segments(
        self, text: str, messages: Sequence[Message], marked: Collection[int], add_generation_prompt: bool
    ) -> tuple[Segment, ...] | None:
        """The text cut where the contents of the marked messages begin and end; None if they are not found."""
        secret = secrets.token_hex(16)
        contents = [message.content for message in messages]
        for index in marked:
            # Templates ask whether a content is blank, so a blank one stays.
            if contents[index].strip():
                contents[index] = f"{secret}n{index}e"
        try:
            pattern = self._render(messages, contents, add_generation_prompt)
        except (UsageError, ModelFileError):
            return None
        literals = re.split(f"{secret}n([0-9]+)e", pattern)
        if secret in "".join(literals[::2]):
            return None
        return _align(text, literals[::2], [messages[int(index)].content for index in literals[1::2]])

    def _render(self, messages: Sequence[Message], contents: Sequence[str], add_generation_prompt: bool) -> str:
        pairs = zip(messages, contents, strict=True)
        variables = {
            "messages": [{"role": message.role, "content": content} for message, content in pairs],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self._tokens,
        }
        try:
            return render_within_bounds(self._template, variables)
        except TemplateRefusal as error:
            raise UsageError(f"the model's chat template refuses the messages: {_one_line(error)}; {_RAW}") from error
        except Exception as error:  # a stranger's program may fail in any way
            raise ModelFileError(f"the model's chat template fails: {_one_line(error)}; {_RAW}") from error


_RAW = "use --raw for a prompt without template"


def _align(text: str, literals: Sequence[str], contents: Sequence[str]) -> tuple[Segment, ...] | None:
    """Segments of ``literal, content, literal, …, literal``, if the text is that but for trimmed contents."""
    if not text.startswith(literals[0]):
        return None
    segments = [Segment(literals[0], is_user_content=False)]
    position = len(literals[0])
    for content, literal in zip(contents, literals[1:], strict=True):
        for candidate in (content, content.rstrip(), content.lstrip(), content.strip()):
            if text.startswith(candidate + literal, position):
                break
        else:
            return None
        segments += [Segment(candidate, is_user_content=True), Segment(literal, is_user_content=False)]
        position += len(candidate) + len(literal)
    if position != len(text):
        return None
    return tuple(segment for segment in segments if segment.text)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"
