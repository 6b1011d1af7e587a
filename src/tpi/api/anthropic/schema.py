"""What Anthropic's clients send, and what they are told. What is not named here is harmless, and ignored, unless it is
refused."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tpi.api.description import MAX_ITEMS, Given, Role, Share, Temperature, TopK
from tpi.api.refusals import OF_BOTH, OFF

REFUSED: Mapping[str, Collection[Any]] = {
    **OF_BOTH,
    "container": OFF,
    "context_management": OFF,
    "mcp_servers": OFF,
}


class Block(Given):
    """Of a content: text, thoughts, a call of a tool, or its result."""

    type: Annotated[str, Field(json_schema_extra={"enum": ["text", "thinking", "tool_use", "tool_result"]})]
    text: str | None = None
    thinking: str | None = None
    id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    input: dict[str, Any] | None = None
    is_error: bool | None = None
    tool_use_id: Annotated[str, Field(max_length=256)] | None = None
    content: "str | Annotated[list[Block], Field(max_length=MAX_ITEMS, fail_fast=True)] | None" = None


Content = str | Annotated[list[Block], Field(max_length=MAX_ITEMS, fail_fast=True)]


class GivenMessage(Given):
    role: Role
    content: Content


class GivenTool(Given):
    type: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class GivenChoice(Given):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class GivenThinking(Given):
    type: str
    budget_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None


class OutputFormat(Given):
    type: str
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema", default_factory=dict)]


class OutputConfig(Given):
    effort: Annotated[str, Field(max_length=64)] | None = None
    format: OutputFormat | None = None


class PromptFields(Given):
    """What there is to read."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: Annotated[list[GivenMessage], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    system: Content | None = None
    tools: Annotated[list[GivenTool], Field(max_length=512, fail_fast=True)] | None = None
    tool_choice: GivenChoice | None = None
    thinking: GivenThinking | None = None
    output_config: OutputConfig | None = None


class MessageRequest(PromptFields):
    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool = False
    stop_sequences: Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: Share = None


class ErrorDetail(BaseModel):
    type: str
    message: str


class ToldError(BaseModel):
    type: Literal["error"]
    error: ErrorDetail
    request_id: None


class ToldBlock(BaseModel):
    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class Usage(BaseModel):
    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int


class ToldMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ToldBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: Usage


class ToldCount(BaseModel):
    input_tokens: int
