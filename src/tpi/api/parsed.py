"""Bodies that the guard has parsed, for routes that would parse them again. On the server's loop."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

PARSED = "tpi.parsed"
"""Where in a request's scope it lies."""


class _ParsedRequest(Request):
    async def json(self) -> Any:
        """Once: an answer may take long, and what is not needed any more takes memory."""
        return self.scope.pop(PARSED)


class _ParsedRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(_ParsedRequest(request.scope, request.receive))

        return answer


def new_router() -> APIRouter:
    """One whose routes get what the guard has parsed."""
    return APIRouter(route_class=_ParsedRoute)
