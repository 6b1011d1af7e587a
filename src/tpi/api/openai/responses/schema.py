"""What OpenAI's clients send for responses. What is not named here is harmless, and ignored, unless it is refused."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from tpi.api.description import MAX_ITEMS, Given, Role, few
from tpi.api.openai.grammars import Format
from tpi.api.openai.messages import Content, Part
from tpi.api.openai.schema import Drawing
from tpi.api.openai.thinking import ThinkingFields
from tpi.api.openai.tools import GivenChoice, Tools
from tpi.api.refusals import OF_CHATS, OFF

REFUSED: Mapping[str, Collection[Any]] = {
    **OF_CHATS,
    "background": OFF,
    "context_management": OFF,
    "conversation": OFF,
    "image": OFF,
    "prompt": OFF,
}
LOGPROBS = "message.output_text.logprobs"
"""How ``include`` asks for them."""


ITEMS = ("message", "reasoning", "function_call", "function_call_output")


class Item(Given):
    """Of an input: a message, thoughts, a call of a tool, or its result."""

    type: Annotated[str, Field(json_schema_extra={"enum": list(ITEMS)})] = "message"
    role: Role | None = None
    content: Content = None
    summary: Annotated[list[Part], Field(max_length=MAX_ITEMS, fail_fast=True)] | None = None
    call_id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    arguments: str | None = None
    output: Content = None


class TextSettings(Given):
    format: Format | None = None
    verbosity: str | None = None


class ResponseRequest(Drawing, ThinkingFields):
    model_config = ConfigDict(extra="allow")

    input: str | Annotated[list[Item], Field(max_length=MAX_ITEMS, fail_fast=True)]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    store: bool | None = None
    text: TextSettings | None = None
    tools: Tools | None = None
    tool_choice: str | GivenChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[str], Field(max_length=64, fail_fast=True)] | None = None
    metadata: Annotated[dict[str, str], few(64)] | None = None
    user: str | None = None
    truncation: str | None = None
