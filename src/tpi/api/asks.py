"""What all APIs' requests come down to. Pure."""

from dataclasses import dataclass
from typing import TypeAlias

from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.turns import ChatAsk, Grammar


@dataclass(frozen=True, slots=True)
class TextAsk:
    """A text, or its tokens, to go on with as it is."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    grammar: Grammar | None = None
    """Of the answer."""


AnyAsk: TypeAlias = ChatAsk | TextAsk


@dataclass(frozen=True, slots=True)
class Ask:
    """``n`` answers to each prompt, with seeds of their own."""

    prompts: tuple[AnyAsk, ...]
    sampling: SamplingSettings
    settings: GenerationSettings
    n: int = 1
