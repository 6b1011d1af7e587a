"""What OpenAI's clients send for chats and completions, with what vLLM, llama.cpp and others add. What is not named
here is harmless, and ignored, unless ``refusals`` knows it."""

from typing import Annotated

from pydantic import ConfigDict, Field

from tpi.api.description import MAX_ITEMS, Bias, Given, Tokens, few
from tpi.api.drawing import DrawingFields
from tpi.api.openai.grammars import GrammarFields
from tpi.api.openai.messages import ChatMessage
from tpi.api.openai.thinking import ThinkingFields
from tpi.api.openai.tools import MAX_TOOLS, Function, FunctionName, GivenChoice, Tools
from tpi.engine.settings import MAX_BIASES

MAX_CHOICES = 16
MAX_PROMPTS = 64

_Prompts = Field(max_length=MAX_ITEMS, fail_fast=True)
"""More than are answered, which is told in clearer words."""
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class StreamOptions(Given):
    include_usage: bool = False


class Drawing(GrammarFields, DrawingFields):
    """How tokens are drawn and what ends an answer, in both kinds of requests."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logit_bias: Annotated[dict[str, Bias], few(MAX_BIASES)] | None = None
    seed: Seed | None = None
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    id_slot: int | None = None

    @property
    def tells_usage(self) -> bool:
        """A stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Drawing, ThinkingFields):
    model_config = ConfigDict(extra="allow")

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: str | GivenChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: str | FunctionName | None = None
    continue_final_message: bool | None = None


class CompletionRequest(Drawing):
    prompt: str | Tokens | Annotated[list[str], _Prompts] | Annotated[list[Tokens], _Prompts]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None
