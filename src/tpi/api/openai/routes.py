"""All routes of OpenAI's API."""

from fastapi import APIRouter

from tpi.api.openai.chat import ChatRoutes
from tpi.api.openai.completions import CompletionRoutes
from tpi.api.service import Service
from tpi.api.streams import Body


def make_router(service: Service) -> APIRouter:
    """To be included in the application."""
    router, models = APIRouter(), _ModelRoutes(service)
    router.add_api_route("/v1/models", models.all, methods=["GET"])
    router.add_api_route("/v1/models/{model:path}", models.one, methods=["GET"])
    router.add_api_route("/v1/chat/completions", ChatRoutes(service).create, methods=["POST"])
    router.add_api_route("/v1/completions", CompletionRoutes(service).create, methods=["POST"])
    return router


class _ModelRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self) -> Body:
        return {"object": "list", "data": [self._model()]}

    async def one(self, model: str) -> Body:
        self._service.check_model(model)
        return self._model()

    def _model(self) -> Body:
        identity = self._service.identity
        return {"id": identity.model, "object": "model", "created": identity.created_s, "owned_by": "tpi"}
