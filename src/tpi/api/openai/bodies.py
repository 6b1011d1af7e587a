"""What OpenAI's clients get: bodies of responses and of the chunks of a stream. Pure."""

import secrets
from collections.abc import Sequence
from typing import Any

from tpi.api.openai.tools import calls_body, deltas_body
from tpi.api.streams import Body
from tpi.engine.generation import TokenLogprob
from tpi.engine.reading import ChatDelta, Reply


class Bodies:
    """All bodies of one response."""

    def __init__(self, model: str, created_s: int, kind: str, n: int) -> None:
        """``kind`` is ``chat.completion`` or ``text_completion``; every prompt gets ``n`` answers."""
        prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
        self._kind, self._n = kind, n
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": created_s, "model": model}

    def whole(self, choices: Sequence[Body], replies: Sequence[Reply]) -> Body:
        return {**self._head, "object": self._kind, "choices": list(choices), "usage": self.usage(replies)}

    def chunk(self, choices: Sequence[Body], **more: Any) -> Body:
        kind = self._kind + (".chunk" if self._kind.startswith("chat") else "")
        return {**self._head, "object": kind, "choices": list(choices), **more}

    def usage(self, replies: Sequence[Reply]) -> Body:
        """Tokens that were read and written; a prompt that several answers have in common counts once."""
        answers = [reply.answer for reply in replies]
        n_prompt = sum(answer.n_prompt_tokens for answer in answers[:: self._n])
        n_answer = sum(answer.n_tokens for answer in answers)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_answer,
            "total_tokens": n_prompt + n_answer,
            "prompt_tokens_details": {"cached_tokens": sum(answer.n_cached_tokens for answer in answers[:: self._n])},
            "completion_tokens_details": {"reasoning_tokens": sum(reply.n_reasoning_tokens for reply in replies)},
        }


def message_body(reply: Reply, *, is_older: bool) -> Body:
    """``is_older``: calls of functions have the form that they had before there were tools."""
    body: Body = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.reasoning:
        body["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        body["content"] = reply.content or None
        calls = calls_body(reply.tool_calls)
        body |= {"function_call": calls[0]["function"]} if is_older else {"tool_calls": calls}
    return body


def delta_body(delta: ChatDelta, *, is_older: bool) -> Body:
    """As ``message_body``."""
    body: Body = {}
    if delta.content or not (delta.reasoning or delta.tool_calls):
        body["content"] = delta.content
    if delta.reasoning:
        body["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        calls = deltas_body(delta.tool_calls)
        body |= {"function_call": calls[0]["function"]} if is_older else {"tool_calls": calls}
    return body


def chat_logprobs(tokens: Sequence[TokenLogprob], text_of: Any) -> Body:
    """``text_of`` gives the bytes of a token."""

    def entry(token: int, logprob: float) -> Body:
        data: bytes = text_of(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}

    content = [
        {**entry(drawn.token, drawn.logprob), "top_logprobs": [entry(*other) for other in drawn.top]}
        for drawn in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], text_of: Any, first_offset: int) -> Body:
    """The older form: lists side by side, the drawn tokens among the most probable; offsets are counted in characters
    from the beginning of the text, where the answer begins at ``first_offset``."""
    tops = [
        {
            _name(text_of(token)): _finite(logprob)
            for token, logprob in dict([*drawn.top, (drawn.token, drawn.logprob)]).items()
        }
        for drawn in tokens
    ]
    logprobs = [_finite(drawn.logprob) for drawn in tokens]
    names, offsets = [_name(text_of(drawn.token)) for drawn in tokens], [first_offset + drawn.start for drawn in tokens]
    return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def _name(data: bytes) -> str:
    """A token's text; of parts of characters their bytes, so that all have names of their own."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    """JSON has no infinities."""
    return max(logprob, -9999.0)
