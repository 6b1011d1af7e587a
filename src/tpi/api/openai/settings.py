"""The settings of an answer from a request in OpenAI's words. Pure."""

from tpi.api.drawing import read_drawing, seed_or_none, slot_or_none
from tpi.api.errors import Problem
from tpi.api.openai.schema import Drawing
from tpi.engine.settings import MAX_TOKENS, GenerationSettings, SamplingSettings

_MAX_DIGITS = 10
"""Of a token's number."""


def read_sampling(asked: Drawing, defaults: SamplingSettings, n_tokens: int) -> SamplingSettings:
    """Raises:
    UsageError: a value lies outside its limits.
    Problem: a bias of what is no token.
    """
    biases = list[tuple[int, float]]()
    for name, bias in (asked.logit_bias or {}).items():
        if not (name.isascii() and name.isdecimal() and len(name) <= _MAX_DIGITS) or int(name) >= n_tokens:
            raise Problem(400, f"{name[:80]!r} is no token: there are 0 to {n_tokens - 1}", param="logit_bias")
        biases.append((int(name), bias))
    return read_drawing(asked, defaults, seed_or_none(asked.seed), tuple(dict(biases).items()))


def read_generation(
    asked: Drawing, n_context: int, max_tokens: int | None, n_logprobs: int | None, *, raw: bool
) -> GenerationSettings:
    """An answer of as many tokens as are asked for, or else as fit the context. Raises as ``GenerationSettings``."""
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    most = min(max_tokens or n_context, MAX_TOKENS)
    stops, slot = tuple(text for text in stop if text), slot_or_none(asked.id_slot)
    return GenerationSettings(most, stops, raw, n_logprobs, slot)
