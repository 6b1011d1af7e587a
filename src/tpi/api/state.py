"""``/v1/cluster``, its events, and ``/metrics``: how the cluster is, for people's dashboards."""

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from tpi.api.description import described
from tpi.api.events import Events
from tpi.api.metrics import CONTENT_TYPE, metrics
from tpi.api.openai.told import ErrorDetail, ToldError
from tpi.api.parsed import new_router
from tpi.api.service import Service

_STATE = {"type": "object", "required": ["model", "ranks", "answers"]}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": ErrorDetail.model_json_schema()}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what["description"], "content": {"application/json": {"schema": _ERROR}}}
    for status, what in described(None, ToldError).items()
    if status != 200
}
_JSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": _STATE}}}, **_ERRORS}


EVENTS_PATH = "/v1/cluster/events"


class _Events(StreamingResponse):
    media_type = "text/event-stream"


def make_state_router(service: Service) -> APIRouter:
    """All routes."""

    async def tell() -> Response:
        return Response(msgspec.json.encode(await service.status()), media_type="application/json")

    async def measure() -> Response:
        text = metrics(service.identity.model, service, await service.status())
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    events = Events(service)

    async def follow() -> Response:
        return _Events(events.listen(), headers={"Cache-Control": "no-cache"})

    router = new_router()
    router.add_api_route("/v1/cluster", tell, methods=["GET"], responses=_JSON)
    router.add_api_route(EVENTS_PATH, follow, methods=["GET"], response_class=_Events, responses=_ERRORS)
    router.add_api_route("/metrics", measure, methods=["GET"], response_class=PlainTextResponse, responses=_ERRORS)
    return router
