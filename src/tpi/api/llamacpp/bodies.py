"""What clients of llama.cpp's server are told of an answer, and how that is described to them."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from tpi.api.openai.bodies import chat_logprobs
from tpi.api.streams import Body
from tpi.engine.generation import Answer, TokenLogprob
from tpi.engine.reading import ChatDelta, Reply


class ErrorDetail(BaseModel):
    code: int
    message: str
    type: str


class ToldError(BaseModel):
    error: ErrorDetail


class Timings(BaseModel):
    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class ToldCompletion(BaseModel):
    index: int
    content: str
    tokens: list[int]
    id_slot: int
    stop: Literal[True]
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    truncated: Literal[False]
    stop_type: Literal["eos", "limit", "word"]
    stopping_word: str
    timings: Timings
    generation_settings: dict[str, Any]
    completion_probabilities: list[dict[str, Any]] | None = None


class Bodies:
    """All bodies of one response."""

    def __init__(self, model: str, settings: Body, text_of: Any, *, has_tokens: bool, has_probabilities: bool) -> None:
        """``settings`` are told at the end; ``text_of`` gives the bytes of a token."""
        self._model, self._settings, self._text_of = model, settings, text_of
        self._has_tokens, self._has_probabilities = has_tokens, has_probabilities

    def whole(self, index: int, reply: Reply, *, is_empty: bool = False) -> Body:
        """``is_empty``: nothing was to be said."""
        content, tokens = ("", ()) if is_empty else (reply.content, reply.logprobs)
        return self._of(index, content, tokens) | self._end(reply, is_empty=is_empty)

    def grown(self, index: int, delta: ChatDelta) -> Body:
        return {**self._of(index, delta.content, delta.logprobs), "stop": False, "tokens_predicted": delta.n_tokens}

    def end(self, index: int, reply: Reply) -> Body:
        return self._of(index, "", ()) | self._end(reply)

    def _of(self, index: int, content: str, logprobs: Sequence[TokenLogprob]) -> Body:
        tokens = [drawn.token for drawn in logprobs] if self._has_tokens else []
        body: Body = {"index": index, "content": content, "tokens": tokens}
        if self._has_probabilities:
            told = chat_logprobs(logprobs, self._text_of)["content"]
            for entry, drawn in zip(told, logprobs, strict=True):
                entry["id"] = drawn.token
                for other, (token, _) in zip(entry["top_logprobs"], drawn.top, strict=True):
                    other["id"] = token
            body["completion_probabilities"] = told
        return body

    def _end(self, reply: Reply, *, is_empty: bool = False) -> Body:
        answer = reply.answer
        kind = "word" if answer.stopped_by else "limit" if reply.finish == "length" else "eos"
        return {
            "stop": True,
            "id_slot": answer.slot,
            "model": self._model,
            "tokens_predicted": 0 if is_empty else answer.n_tokens,
            "tokens_evaluated": answer.n_prompt_tokens,
            "tokens_cached": answer.n_prompt_tokens + answer.n_tokens,
            "truncated": False,
            "stop_type": "limit" if is_empty else kind,
            "stopping_word": answer.stopped_by,
            "timings": _timings(answer),
            "generation_settings": self._settings | {"seed": answer.seed},
        }


def _timings(answer: Answer) -> Body:
    n_read = answer.n_prompt_tokens - answer.n_cached_tokens
    read_ms, decode_ms = answer.time_to_first_token_s * 1e3, answer.decode_s * 1e3
    return {
        "cache_n": answer.n_cached_tokens,
        "prompt_n": n_read,
        "prompt_ms": read_ms,
        "prompt_per_token_ms": read_ms / max(n_read, 1),
        "prompt_per_second": n_read / max(answer.time_to_first_token_s, 1e-9),
        "predicted_n": answer.n_tokens,
        "predicted_ms": decode_ms,
        "predicted_per_token_ms": decode_ms / max(answer.n_tokens, 1),
        "predicted_per_second": answer.n_tokens / max(answer.decode_s, 1e-9),
    }
