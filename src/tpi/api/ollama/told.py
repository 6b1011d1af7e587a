"""What Ollama's clients are told, as it is described to them, and how it is built."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from tpi.api.streams import Body
from tpi.api.values import arguments_of
from tpi.engine.reading import Reply
from tpi.engine.turns import ToolCall


class ToldError(BaseModel):
    error: str


class _Figures(BaseModel):
    model: str
    created_at: str
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class ToldMessage(BaseModel):
    role: str
    content: str
    thinking: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ToldChat(_Figures):
    message: ToldMessage
    logprobs: list[dict[str, Any]] | None = None


class ToldText(_Figures):
    response: str
    thinking: str | None = None
    logprobs: list[dict[str, Any]] | None = None


class Details(BaseModel):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ToldModel(BaseModel):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    modified_at: str | None = None
    expires_at: str | None = None
    size_vram: int | None = None
    context_length: int | None = None


class ToldModels(BaseModel):
    models: list[ToldModel]


class Shown(BaseModel):
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class ToldVectors(BaseModel):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class ToldVector(BaseModel):
    embedding: list[float]


class ToldVersion(BaseModel):
    version: str


def figures(reply: Reply) -> Body:
    """What an answer took, in nanoseconds."""
    answer = reply.answer
    read_ns, decode_ns = round(answer.time_to_first_token_s * 1e9), round(answer.decode_s * 1e9)
    return {
        "done": True,
        "done_reason": "length" if reply.finish == "length" else "stop",
        "total_duration": read_ns + decode_ns,
        "load_duration": 0,
        "prompt_eval_count": answer.n_prompt_tokens,
        "prompt_eval_duration": read_ns,
        "eval_count": answer.n_tokens,
        "eval_duration": decode_ns,
    }


def calls_body(calls: Sequence[ToolCall]) -> list[Body]:
    """Arguments are objects here; what a model wrote that is none is told as its text."""
    return [
        {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments_of(call.arguments)}}
        for index, call in enumerate(calls)
    ]


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
