"""All routes of Anthropic's API."""

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tpi.api.anthropic.asks import read_generation, read_messages, read_sampling
from tpi.api.anthropic.schema import MessageRequest, PromptFields, ToldCount, ToldError, ToldMessage
from tpi.api.anthropic.writer import MessageWriter
from tpi.api.asks import Ask
from tpi.api.connection import while_connected
from tpi.api.description import described
from tpi.api.errors import problem_of
from tpi.api.parsed import new_router
from tpi.api.service import Service
from tpi.api.streams import Body, stream, typed_event, whole
from tpi.engine.reading import ChatDelta, Reply
from tpi.errors import TpiError


def make_router(service: Service) -> APIRouter:
    """To be included in the application."""
    router, routes = new_router(), _MessageRoutes(service)
    add = router.add_api_route
    told = described(ToldMessage, ToldError, streams="text/event-stream")
    add("/v1/messages", routes.create, methods=["POST"], responses=told)
    add("/v1/messages/count_tokens", routes.count, methods=["POST"], responses=described(ToldCount, ToldError))
    return router


class _MessageRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, asked: MessageRequest, request: Request) -> Response:
        service = self._service
        service.check_model(asked.model)
        ask = Ask((read_messages(asked),), read_sampling(asked, service.sampling), read_generation(asked))
        answerings = await while_connected(request, service.begin(ask))
        writer = MessageWriter(service.identity.model, asked.max_tokens, asked.stop_sequences or ())
        if not asked.stream:
            [reply] = await whole(request, answerings)
            return JSONResponse(writer.whole(reply))

        def tell(_: int, item: ChatDelta | Reply) -> Iterable[bytes]:
            return () if isinstance(item, Reply) else map(typed_event, writer.push(item))

        def close(replies: Sequence[Reply]) -> Iterable[bytes]:
            return map(typed_event, writer.close(replies[0]))

        opening = map(typed_event, writer.open(answerings[0].reply.answer))
        return stream(answerings, tell, _tell_error, opening=opening, closing=close)

    async def count(self, asked: PromptFields) -> Body:
        self._service.check_model(asked.model)
        ask = read_messages(asked)
        prompt = await self._service.workers.run(lambda going: self._service.prompt(ask, going, is_asked=False))
        return {"input_tokens": len(prompt.tokens)}


def _tell_error(error: TpiError) -> Iterable[bytes]:
    """In the middle of a stream."""
    yield typed_event(problem_of(error).anthropic_body)
