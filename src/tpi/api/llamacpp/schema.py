"""What clients of llama.cpp's server send. What is not named here is harmless, and ignored, unless it is refused."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from tpi.api.description import Given, few
from tpi.api.drawing import DrawingFields
from tpi.api.refusals import OF_BOTH, OFF
from tpi.engine.settings import MAX_BIASES

REFUSED: Mapping[str, Collection[Any]] = {
    **OF_BOTH,
    "n_indent": OFF,
    "post_sampling_probs": OFF,
}
MAX_CHARS = 1 << 22
MAX_BIASED_CHARS = 1024
"""Of a text whose tokens are biased."""
MAX_TEXTS = 2048
"""In one request, or among the tokens of one prompt."""
Text = Annotated[str, Field(max_length=MAX_CHARS)]
Piece = int | Text
Pieces = Annotated[list[Piece], Field(max_length=1 << 20, fail_fast=True)]
Bias = Annotated[list[int | str | float | bool], Field(min_length=2, max_length=2, fail_fast=True)]

Biases = Annotated[list[Bias], Field(max_length=MAX_BIASES, fail_fast=True)]


class CompletionFields(DrawingFields):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool = False
    n_predict: int | None = None
    n_cmpl: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    logit_bias: Biases | Annotated[dict[str, float | bool], few(MAX_BIASES)] | None = None
    n_probs: Annotated[int, Field(ge=0, le=20)] | None = None
    return_tokens: bool = False
    id_slot: int | None = None
    grammar: Text | None = None
    json_schema: dict[str, Any] | bool | None = None


class CompletionRequest(CompletionFields):
    prompt: Text | Pieces | Annotated[list[Text | Pieces], Field(max_length=64, fail_fast=True)]


class ExtraText(Given):
    filename: str = ""
    text: Text = ""


class InfillRequest(CompletionFields):
    input_prefix: Text = ""
    input_suffix: Text = ""
    input_extra: Annotated[list[ExtraText], Field(max_length=256, fail_fast=True)] | None = None
    prompt: Text = ""


class SlotRequest(Given):
    filename: str | None = None


class TokenizeRequest(Given):
    content: Text = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Given):
    tokens: Annotated[list[int], Field(max_length=1 << 20, fail_fast=True)]


class EmbeddingRequest(Given):
    content: Text | Pieces | Annotated[list[Text | Pieces], Field(max_length=MAX_TEXTS, fail_fast=True)] | None = None
    input: Text | Pieces | Annotated[list[Text | Pieces], Field(max_length=MAX_TEXTS, fail_fast=True)] | None = None
    embd_normalize: int | None = None


class RankedText(Given):
    text: Text


class RankRequest(Given):
    model: str | None = None
    query: Text
    documents: Annotated[list[Text | RankedText], Field(max_length=1024, fail_fast=True)]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = False
