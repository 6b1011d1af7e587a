"""How tokens are drawn, by the names of OpenAI, vLLM, llama.cpp and Ollama, in requests of all of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field

from tpi.api.description import Penalty, Recent, Repetition, Share, Temperature, TopK
from tpi.engine.settings import MAX_PENALTY_WINDOW, MAX_SEED, SamplingSettings

_OTHER_NAMES = {
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window_tokens",
    "dry_penalty_last_n": "dry_window_tokens",
    "dry_sequence_breakers": "dry_breakers",
}
_WINDOWS = ("penalty_window_tokens", "dry_window_tokens")


class DrawingFields(BaseModel):
    """What is not given is as the server has it."""

    temperature: Temperature = None
    top_p: Share = None
    top_k: TopK = None
    min_p: Share = None
    typical_p: Share = None
    repetition_penalty: Repetition = None
    repeat_penalty: Repetition = None
    repeat_last_n: Recent = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    dry_multiplier: Annotated[float | None, Field(json_schema_extra={"minimum": 0, "maximum": 100})] = None
    dry_base: Annotated[float | None, Field(json_schema_extra={"minimum": 1, "maximum": 100})] = None
    dry_allowed_length: Annotated[int | None, Field(json_schema_extra={"minimum": 0, "maximum": 1_000_000})] = None
    dry_penalty_last_n: Recent = None
    dry_sequence_breakers: Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    xtc_probability: Share = None
    xtc_threshold: Share = None


def read_drawing(
    asked: DrawingFields,
    defaults: SamplingSettings,
    seed: int | None,
    biases: Sequence[tuple[int, float]] = (),
) -> SamplingSettings:
    """A window of -1 is all tokens, as is a ``top_k`` of -1.

    Raises:
        UsageError: a value lies outside its limits.
    """
    given: dict[str, Any] = {}
    for name in DrawingFields.model_fields:
        if (value := getattr(asked, name)) is not None:
            given[_OTHER_NAMES.get(name, name)] = tuple(value) if isinstance(value, list) else value
    for name in _WINDOWS:
        if given.get(name, 0) < 0:
            given[name] = MAX_PENALTY_WINDOW
    if given.get("top_k") == -1:
        given["top_k"] = 0
    return replace(defaults, **given, logit_bias=tuple(biases), seed=seed)


def slot_or_none(number: int | None) -> int | None:
    """The slot at which an answer is wanted; -1 is any."""
    return None if number == -1 else number


def seed_or_none(seed: int | None) -> int | None:
    """As llama.cpp and Ollama have it: -1 is one that is drawn."""
    return None if seed is None or seed == -1 else seed % (MAX_SEED + 1)
