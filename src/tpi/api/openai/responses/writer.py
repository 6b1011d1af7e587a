"""A response as it grows: its items, and the events that tell of them, numbered. One writer per response. Pure."""

import secrets
from collections.abc import Iterator
from typing import Any

from tpi.api.openai.bodies import chat_logprobs
from tpi.api.streams import Body
from tpi.engine.reading import ChatDelta, Reply
from tpi.engine.turns import ToolCallDelta


class ResponseWriter:
    """``head`` is the response without output, which ``output`` becomes."""

    def __init__(self, head: Body, text_of: Any) -> None:
        """``text_of`` gives the bytes of a token."""
        self._head, self._text_of = head, text_of
        self._n_events = 0
        self.output: list[Body] = []
        self._call: int | None = None
        """The call that the open item is."""

    def open(self) -> Iterator[Body]:
        body = {**self._head, "status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=body)
        yield self._event("response.in_progress", response=body)

    def push(self, delta: ChatDelta) -> Iterator[Body]:
        """What there is to tell of more."""
        if delta.reasoning:
            yield from self._begin("reasoning")
            yield from self._add(delta.reasoning, "response.reasoning_text.delta")
        if delta.content:
            yield from self._begin("message")
            logprobs = chat_logprobs(delta.logprobs, self._text_of)["content"]
            self.output[-1]["content"][0]["logprobs"] += logprobs
            yield from self._add(delta.content, "response.output_text.delta", logprobs=logprobs)
        for call in delta.tool_calls:
            yield from self._begin_call(call)
            if call.arguments:
                self.output[-1]["arguments"] += call.arguments
                yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)

    def close(self, reply: Reply) -> Iterator[Body]:
        """The end; an answer without words has a message that says nothing."""
        if not self.output:
            yield from self._begin("message")
        yield from self._end("incomplete" if reply.finish == "length" else "completed")
        body = self.body(reply)
        yield self._event(f"response.{body['status']}", response=body)

    def fail(self, code: str, message: str) -> Body:
        """It could not go on."""
        error = {"code": code, "message": message}
        body = {**self._head, "status": "failed", "error": error, "output": self.output, "usage": None}
        return self._event("response.failed", response=body)

    def body(self, reply: Reply) -> Body:
        """The response as a whole."""
        is_cut = reply.finish == "length"
        answer = reply.answer
        usage = {
            "input_tokens": answer.n_prompt_tokens,
            "input_tokens_details": {"cached_tokens": answer.n_cached_tokens},
            "output_tokens": answer.n_tokens,
            "output_tokens_details": {"reasoning_tokens": reply.n_reasoning_tokens},
            "total_tokens": answer.n_prompt_tokens + answer.n_tokens,
        }
        return {
            **self._head,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self.output,
            "usage": usage,
        }

    # Items.

    def _begin(self, kind: str) -> Iterator[Body]:
        if self.output and self.output[-1]["status"] == "in_progress" and self.output[-1]["type"] == kind:
            return
        yield from self._end()
        prefix = {"message": "msg", "reasoning": "rs"}[kind]
        item: Body = {"id": f"{prefix}_{secrets.token_hex(12)}", "type": kind, "status": "in_progress", "content": []}
        item["summary" if kind == "reasoning" else "role"] = [] if kind == "reasoning" else "assistant"
        self.output.append(item)
        yield self._event(
            "response.output_item.added",
            output_index=len(self.output) - 1,
            item=item.copy() | {"content": list[Body]()},
        )
        part: Body = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        if kind == "reasoning":
            part = {"type": "reasoning_text", "text": ""}
        item["content"].append(part)
        yield self._of_item("response.content_part.added", content_index=0, part=dict(part))

    def _add(self, text: str, kind: str, **more: Any) -> Iterator[Body]:
        self.output[-1]["content"][0]["text"] += text
        yield self._of_item(kind, content_index=0, delta=text, **more)

    def _begin_call(self, call: ToolCallDelta) -> Iterator[Body]:
        if self._call == call.index:
            return
        yield from self._end()
        self._call = call.index
        item = {
            "id": f"fc_{secrets.token_hex(12)}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        self.output.append(item)
        yield self._event("response.output_item.added", output_index=len(self.output) - 1, item=dict(item))

    def _end(self, status: str = "completed") -> Iterator[Body]:
        """Closes the item that is open; ``status`` is how far it got."""
        if not self.output or self.output[-1]["status"] != "in_progress":
            return
        item, self._call = self.output[-1], None
        item["status"] = status
        if item["type"] == "function_call":
            yield self._of_item("response.function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        else:
            part = item["content"][0]
            if item["type"] == "message":
                text = {"text": part["text"], "logprobs": part["logprobs"]}
                yield self._of_item("response.output_text.done", content_index=0, **text)
            else:
                yield self._of_item("response.reasoning_text.done", content_index=0, text=part["text"])
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        yield self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)

    def _of_item(self, kind: str, **more: Any) -> Body:
        return self._event(kind, item_id=self.output[-1]["id"], output_index=len(self.output) - 1, **more)

    def _event(self, kind: str, **more: Any) -> Body:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1, **more}
