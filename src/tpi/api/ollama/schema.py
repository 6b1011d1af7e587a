"""What Ollama's clients send. What is not named here is harmless, and ignored."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from tpi.api.description import MAX_ITEMS, Given, Role
from tpi.api.drawing import DrawingFields


class CalledFunction(Given):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: dict[str, Any] | None = None


class GivenCall(Given):
    id: str = ""
    function: CalledFunction


class ChatMessage(Given):
    role: Role
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[GivenCall], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunction(Given):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class GivenTool(Given):
    type: str | None = None
    function: ToolFunction


class Options(DrawingFields):
    """How tokens are drawn. Those of how it is computed (``num_ctx``, ``num_gpu``, …) belong to the server, and are
    ignored."""

    model_config = ConfigDict(extra="allow")

    num_predict: int | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=64, fail_fast=True)] | None = None


class Asked(Given):
    """What requests for answers have in common."""

    model: str | None = None
    stream: bool | None = None
    options: Options | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def streams(self) -> bool:
        """It does, unless it is told not to."""
        return self.stream is not False


class ChatRequest(Asked):
    messages: Annotated[list[ChatMessage], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    tools: Annotated[list[GivenTool], Field(max_length=512, fail_fast=True)] | None = None


class GenerateRequest(Asked):
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[Any] | None = None
    images: list[Any] | None = None


class EmbedRequest(Given):
    model: str | None = None
    input: str | Annotated[list[str], Field(max_length=2048, fail_fast=True)]
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class OlderEmbedRequest(Given):
    model: str | None = None
    prompt: str


class ShowRequest(Given):
    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
