"""``/v1/chat/completions``."""

import time
from collections.abc import Iterable, Sequence

from fastapi import Request
from starlette.responses import JSONResponse, Response

from tpi.api.asks import Ask
from tpi.api.connection import while_connected
from tpi.api.errors import Problem, problem_of
from tpi.api.openai.bodies import Bodies, chat_logprobs, delta_body, message_body
from tpi.api.openai.chats import read_chat
from tpi.api.openai.schema import ChatRequest
from tpi.api.openai.settings import read_generation, read_sampling
from tpi.api.service import Service
from tpi.api.streams import Body, event, stream, whole
from tpi.engine.reading import ChatDelta, Reply
from tpi.errors import TpiError


class ChatRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, asked: ChatRequest, request: Request) -> Response:
        service = self._service
        service.check_model(asked.model)
        answerings = await while_connected(request, service.begin(self._read(asked)))
        bodies = Bodies(service.identity.model, int(time.time()), "chat.completion", asked.n or 1)
        if not asked.stream:
            replies = await whole(request, answerings)
            choices = [self._choice(index, reply, asked) for index, reply in enumerate(replies)]
            return JSONResponse(bodies.whole(choices, replies))
        usage: Body = {"usage": None} if asked.tells_usage else {}

        def tell(index: int, item: ChatDelta | Reply) -> Iterable[bytes]:
            yield event(bodies.chunk([self._grown(index, item, asked)], **usage))

        def close(replies: Sequence[Reply]) -> Iterable[bytes]:
            if asked.tells_usage:
                yield event(bodies.chunk([], usage=bodies.usage(replies)))
            yield b"data: [DONE]\n\n"

        first = {"role": "assistant", "content": "", "refusal": None}
        opening = [event(bodies.chunk([_choice(index, first)], **usage)) for index in range(len(answerings))]
        return stream(answerings, tell, tell_error, opening=opening, closing=close)

    def _read(self, asked: ChatRequest) -> Ask:
        service = self._service
        if asked.top_logprobs and not asked.logprobs:
            raise Problem(400, "top_logprobs is of no use without logprobs: set logprobs to true", param="top_logprobs")
        n_logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        max_tokens = asked.max_completion_tokens or asked.max_tokens
        settings = read_generation(asked, service.n_context, max_tokens, n_logprobs, raw=False)
        sampling = read_sampling(asked, service.sampling, service.vocabulary_size)
        return Ask((read_chat(asked),), sampling, settings, asked.n or 1)

    def _choice(self, index: int, reply: Reply, asked: ChatRequest) -> Body:
        return {
            "index": index,
            "message": message_body(reply, is_older=bool(asked.functions)),
            "logprobs": chat_logprobs(reply.logprobs, self._service.text_of) if asked.logprobs else None,
            "finish_reason": finish_reason(reply, asked),
        }

    def _grown(self, index: int, item: ChatDelta | Reply, asked: ChatRequest) -> Body:
        if isinstance(item, Reply):
            return _choice(index, {}, finish=finish_reason(item, asked))
        logprobs = chat_logprobs(item.logprobs, self._service.text_of) if item.logprobs else None
        return _choice(index, delta_body(item, is_older=bool(asked.functions)), logprobs)


def finish_reason(reply: Reply, asked: ChatRequest | None = None) -> str:
    """In OpenAI's words."""
    if reply.finish == "tool_calls" and asked is not None and asked.functions:
        return "function_call"
    return reply.finish if reply.finish in ("length", "tool_calls") else "stop"


def tell_error(error: TpiError) -> Iterable[bytes]:
    """In the middle of a stream."""
    yield event(problem_of(error).body)


def _choice(index: int, delta: Body, logprobs: Body | None = None, finish: str | None = None) -> Body:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
