"""What OpenAI's clients are told, as it is described to them. Bodies themselves are built in ``bodies``."""

from typing import Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ToldError(BaseModel):
    error: ErrorDetail


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class ToldFunction(BaseModel):
    name: str
    arguments: str


class ToldCall(BaseModel):
    id: str
    type: Literal["function"]
    function: ToldFunction


class ToldMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToldCall] | None = None
    function_call: ToldFunction | None = None


class ChatChoice(BaseModel):
    index: int
    message: ToldMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]


class PromptDetails(BaseModel):
    cached_tokens: int


class CompletionDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ToldModel(BaseModel):
    """In a form that OpenAI's and Anthropic's clients can read."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_model_len: int
    max_input_tokens: int


class ToldModels(BaseModel):
    object: Literal["list"]
    data: list[ToldModel]
    first_id: str
    last_id: str
    has_more: bool


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, str]]
    logprobs: list[TokenLogprob]


class OutputItem(BaseModel):
    """A message, thoughts, or a call of a tool."""

    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: Literal["completed", "incomplete", "in_progress"]
    content: list[OutputText | ReasoningText] | None = None
    role: Literal["assistant"] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class InputText(BaseModel):
    type: Literal["input_text"]
    text: str


class ListedText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, str]]


class InputItem(BaseModel):
    """What was said before a response."""

    id: str
    type: Literal["message", "reasoning", "function_call", "function_call_output"]
    status: Literal["completed"]
    content: list[InputText | ListedText | ReasoningText] | None = None
    role: str | None = None
    summary: list[dict[str, str]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None


class ToldItems(BaseModel):
    object: Literal["list"]
    data: list[InputItem]
    first_id: str
    last_id: str
    has_more: bool


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class InputDetails(BaseModel):
    cached_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int


class ToldResponse(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage
    previous_response_id: str | None
    store: bool


class Deleted(BaseModel):
    id: str
    object: Literal["response.deleted"]
    deleted: Literal[True]
