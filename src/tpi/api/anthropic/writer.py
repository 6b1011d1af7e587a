"""A message as it grows: its blocks, and the events that tell of them. One writer per message. Pure."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from tpi.api.streams import Body
from tpi.api.values import arguments_of
from tpi.engine.generation import Answer
from tpi.engine.reading import ChatDelta, Reply
from tpi.engine.turns import ToolCallDelta

_KINDS = {"thinking": "thinking_delta", "text": "text_delta"}


class MessageWriter:
    def __init__(self, model: str, max_tokens: int, stops: Sequence[str]) -> None:
        """``stops`` are those of the request."""
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._max_tokens, self._stops = max_tokens, stops
        self._n_blocks, self._open, self._call = 0, "", -1

    def whole(self, reply: Reply) -> Body:
        content: list[Body] = []
        if reply.reasoning:
            content.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
        if reply.content:
            content.append({"type": "text", "text": reply.content})
        for call in reply.tool_calls:
            arguments = arguments_of(call.arguments)
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
        return {**self._head, "content": content, **self._end(reply), "usage": _usage(reply.answer)}

    def open(self, answer: Answer) -> Iterator[Body]:
        """What is computed already is told at the end alone: now it may be known, or not yet."""
        usage = _usage(Answer(n_prompt_tokens=answer.n_prompt_tokens))
        begun: Body = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield {"type": "message_start", "message": {**self._head, **begun}}
        yield {"type": "ping"}

    def push(self, delta: ChatDelta) -> Iterator[Body]:
        """What there is to tell of more."""
        if delta.reasoning:
            yield from self._add("thinking", delta.reasoning, signature="")
        if delta.content:
            yield from self._add("text", delta.content)
        for call in delta.tool_calls:
            yield from self._add_call(call)

    def close(self, reply: Reply) -> Iterator[Body]:
        yield from self._stop()
        yield {"type": "message_delta", "delta": self._end(reply), "usage": _usage(reply.answer)}
        yield {"type": "message_stop"}

    def _end(self, reply: Reply) -> Body:
        answer = reply.answer
        stop = answer.stopped_by if answer.stopped_by in self._stops else None
        reason = "stop_sequence" if stop else "end_turn"
        if reply.tool_calls:
            reason = "tool_use"
        elif reply.finish == "length":
            reason = "max_tokens" if answer.n_tokens >= self._max_tokens else "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": stop}

    # Blocks.

    def _add(self, kind: str, text: str, **more: Any) -> Iterator[Body]:
        if self._open != kind:
            yield from self._start(kind, {"type": kind, kind: "", **more})
        yield self._delta({"type": _KINDS[kind], kind: text})

    def _add_call(self, call: ToolCallDelta) -> Iterator[Body]:
        if self._open != "tool_use" or self._call != call.index:
            yield from self._start("tool_use", {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            self._call = call.index
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _start(self, kind: str, block: Body) -> Iterator[Body]:
        yield from self._stop()
        yield {"type": "content_block_start", "index": self._n_blocks, "content_block": block}
        self._n_blocks, self._open = self._n_blocks + 1, kind

    def _delta(self, delta: Body) -> Body:
        return {"type": "content_block_delta", "index": self._n_blocks - 1, "delta": delta}

    def _stop(self) -> Iterator[Body]:
        if self._open:
            yield {"type": "content_block_stop", "index": self._n_blocks - 1}
            self._open = ""


def _usage(answer: Answer) -> Body:
    return {
        "input_tokens": answer.n_prompt_tokens - answer.n_cached_tokens,
        "cache_read_input_tokens": answer.n_cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": answer.n_tokens,
    }
