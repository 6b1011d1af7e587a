"""Prompts to tokens: chats with their users' words kept apart, and plain text.

Knows the vocabulary, no template. Master only, any thread.

A prompt is tokenized as one text wherever that is safe, which gives the tokens that the model was trained on. Only
when a user's words hold (or complete) the text of a special token, the segments are tokenized one by one, theirs
without special tokens; tokens then do not reach over the borders of segments. Tokens that the model file declares
"user defined" (``<think>`` in some) are words of the language to libllama, and users may write them.
"""

from collections.abc import Sequence
from typing import Protocol

from tpi.engine.chat import ChatTemplate, Segment
from tpi.engine.templateinput import TemplateInput
from tpi.engine.vocabulary import Vocabulary


class _Tokenize(Protocol):
    def __call__(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


def encode_raw(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokens of a prompt that is taken as it is, special tokens written in it included.

    Begins with the begin token if the model wants one and the text does not bring it.
    """
    return _with_bos(vocabulary, vocabulary.tokenize(text, add_special=False, parse_special=True))


def encode_chat(vocabulary: Vocabulary, template: ChatTemplate, asked: TemplateInput) -> list[int]:
    """Tokens of a chat.

    Raises:
        UsageError: the template refuses the messages or fails with them, or a text is too long.
    """
    segments = template.render(asked, lambda text: any(True for _ in vocabulary.special_spans(text)))
    return encode_segments(vocabulary, segments)


def encode_segments(vocabulary: Vocabulary, segments: Sequence[Segment]) -> list[int]:
    """Tokens of a rendered chat, as ``encode_chat``."""
    text = "".join(segment.text for segment in segments)
    if _is_safe(vocabulary, text, segments):
        return _with_bos(vocabulary, vocabulary.tokenize(text, add_special=False, parse_special=True))
    tokens: list[int] = []
    for segment in segments:
        begins = not tokens or vocabulary.is_special(tokens[-1])
        tokenize: _Tokenize = vocabulary.tokenize if begins else vocabulary.tokenize_on
        tokens += tokenize(segment.text, add_special=False, parse_special=not segment.is_user_content)
    return _with_bos(vocabulary, tokens)


def _is_safe(vocabulary: Vocabulary, text: str, segments: Sequence[Segment]) -> bool:
    """Whether no text of a special token touches what a user wrote."""
    ends: list[tuple[int, int]] = []
    position = 0
    for segment in segments:
        if segment.is_user_content:
            ends.append((position, position + len(segment.text)))
        position += len(segment.text)
    index = 0
    for start, end in vocabulary.special_spans(text):
        while index < len(ends) and ends[index][1] <= start:
            index += 1
        if index < len(ends) and ends[index][0] < end:
            return False
    return True


def _with_bos(vocabulary: Vocabulary, tokens: list[int]) -> list[int]:
    bos = vocabulary.bos_id
    return [bos, *tokens] if vocabulary.add_bos and bos is not None and tokens[:1] != [bos] else tokens
