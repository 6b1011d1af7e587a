"""``/v1/responses``: begins one, gives and forgets those that are kept."""

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeAlias

from fastapi import Query, Request
from starlette.responses import JSONResponse, Response

from tpi.api.asks import Ask
from tpi.api.connection import while_connected
from tpi.api.errors import Problem, problem_of
from tpi.api.openai.responses.inputitems import page
from tpi.api.openai.responses.items import read_input, read_response
from tpi.api.openai.responses.schema import LOGPROBS, ResponseRequest
from tpi.api.openai.responses.store import Kept, ResponseStore
from tpi.api.openai.responses.writer import ResponseWriter
from tpi.api.openai.settings import read_generation, read_sampling
from tpi.api.service import Service
from tpi.api.streams import Body, stream, typed_event, whole
from tpi.engine.reading import ChatDelta, Reply
from tpi.engine.settings import SamplingSettings
from tpi.engine.turns import Message, ToolCallDelta
from tpi.errors import TpiError

Limit: TypeAlias = Annotated[int, Query(ge=1, le=100)]


class ResponseRoutes:
    def __init__(self, service: Service) -> None:
        self._service, self._store = service, ResponseStore()

    async def create(self, asked: ResponseRequest, request: Request) -> Response:
        service = self._service
        service.check_model(asked.model)
        before = self._before(asked.previous_response_id)
        n_logprobs = (asked.top_logprobs or 0) if LOGPROBS in (asked.include or ()) else None
        most = asked.max_output_tokens or asked.max_tokens
        settings = read_generation(asked, service.n_context, most, n_logprobs, raw=False)
        sampling = read_sampling(asked, service.sampling, service.vocabulary_size)
        ask = Ask((read_response(asked, before),), sampling, settings)
        answerings = await while_connected(request, service.begin(ask))
        writer = ResponseWriter(_head(asked, service.identity.model, sampling), service.text_of)

        def finish(reply: Reply) -> None:
            if asked.store is not False:
                said = Message("assistant", reply.content, reply.reasoning, reply.tool_calls)
                self._store.keep(Kept(writer.body(reply), (*before, *read_input(asked.input), said)))

        if not asked.stream:
            [reply] = await whole(request, answerings)
            for _ in (*writer.push(_all_of(reply)), *writer.close(reply)):
                pass
            finish(reply)
            return JSONResponse(writer.body(reply))

        def tell(_: int, item: ChatDelta | Reply) -> Iterable[bytes]:
            return () if isinstance(item, Reply) else map(typed_event, writer.push(item))

        def close(replies: Sequence[Reply]) -> Iterable[bytes]:
            yield from map(typed_event, writer.close(replies[0]))
            finish(replies[0])

        def tell_error(error: TpiError) -> Iterable[bytes]:
            yield typed_event(writer.fail("server_error", problem_of(error).message))

        return stream(answerings, tell, tell_error, opening=map(typed_event, writer.open()), closing=close)

    async def find(self, response_id: str, stream: bool = False) -> Body:
        if stream:
            raise Problem(400, "a response that is kept is given as a whole: leave stream out", param="stream")
        return self._kept(response_id).body

    async def input_items(
        self, response_id: str, limit: Limit = 20, order: Literal["asc", "desc"] = "desc", after: str | None = None
    ) -> Body:
        return page(self._kept(response_id), limit, after, is_ascending=order == "asc")

    async def delete(self, response_id: str) -> Body:
        self._kept(response_id)
        self._store.drop(response_id)
        return {"id": response_id, "object": "response.deleted", "deleted": True}

    def _before(self, previous: str | None) -> tuple[Message, ...]:
        if previous is None:
            return ()
        kept = self._store.find(previous)
        if kept is None:
            code, param = "previous_response_not_found", "previous_response_id"
            raise Problem(400, f"there is no response {previous!r} here (any more): {_REMEDY}", code=code, param=param)
        return kept.messages

    def _kept(self, response: str) -> Kept:
        kept = self._store.find(response)
        if kept is None:
            raise Problem(
                404, f"there is no response {response!r} here (any more)", code="not_found", param="response_id"
            )
        return kept


_REMEDY = "send what was said in input"


def _all_of(reply: Reply) -> ChatDelta:
    """A reply as if it had come at once."""
    calls = tuple(
        ToolCallDelta(index, call.id, call.name, call.arguments) for index, call in enumerate(reply.tool_calls)
    )
    return ChatDelta(reply.content, reply.reasoning, calls, reply.logprobs)


def _head(asked: ResponseRequest, model: str, sampling: SamplingSettings) -> Body:
    """What is known of a response before it begins."""
    given = asked.model_dump(include={"tools", "tool_choice"}, exclude_none=True)
    form = asked.text.format if asked.text is not None else None
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": model,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": asked.reasoning.effort if asked.reasoning is not None else None, "summary": None},
        "store": asked.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form is not None else {"type": "text"}},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [{"parameters": {}, "strict": False, **tool} for tool in given.get("tools", ())],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": asked.truncation or "disabled",
        "user": asked.user,
    }
