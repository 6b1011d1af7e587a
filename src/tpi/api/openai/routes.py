"""All routes of OpenAI's API."""

from datetime import UTC, datetime

from fastapi import APIRouter

from tpi.api.description import described
from tpi.api.openai.chat import ChatRoutes
from tpi.api.openai.completions import CompletionRoutes
from tpi.api.openai.embeddings import EmbeddingRoutes, Embeddings
from tpi.api.openai.responses.route import ResponseRoutes
from tpi.api.openai.told import (
    ChatCompletion,
    Completion,
    Deleted,
    ToldError,
    ToldItems,
    ToldModel,
    ToldModels,
    ToldResponse,
)
from tpi.api.parsed import new_router
from tpi.api.service import Service
from tpi.api.streams import Body

_EVENTS = "text/event-stream"


def make_router(service: Service) -> APIRouter:
    """To be included in the application."""
    router, models = new_router(), _ModelRoutes(service)
    add = router.add_api_route
    add("/v1/models", models.all, methods=["GET"], responses=described(ToldModels, ToldError))
    add("/v1/models/{model:path}", models.one, methods=["GET"], responses=described(ToldModel, ToldError))
    chat, completion = ChatRoutes(service), CompletionRoutes(service)
    told = described(ChatCompletion, ToldError, streams=_EVENTS)
    add("/v1/chat/completions", chat.create, methods=["POST"], responses=told)
    told = described(Completion, ToldError, streams=_EVENTS)
    add("/v1/completions", completion.create, methods=["POST"], responses=told)
    embedding = EmbeddingRoutes(service)
    add("/v1/embeddings", embedding.create, methods=["POST"], responses=described(Embeddings, ToldError))
    response = ResponseRoutes(service)
    told = described(ToldResponse, ToldError, streams=_EVENTS)
    add("/v1/responses", response.create, methods=["POST"], responses=told)
    path = "/v1/responses/{response_id}"
    add(path, response.find, methods=["GET"], responses=described(ToldResponse, ToldError))
    add(path, response.delete, methods=["DELETE"], responses=described(Deleted, ToldError))
    add(f"{path}/input_items", response.input_items, methods=["GET"], responses=described(ToldItems, ToldError))
    return router


class _ModelRoutes:
    """In a form that Anthropic's clients can read as well."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self) -> Body:
        model = self._model()
        name = model["id"]
        return {"object": "list", "data": [model], "first_id": name, "last_id": name, "has_more": False}

    async def one(self, model: str) -> Body:
        self._service.check_model(model)
        return self._model()

    def _model(self) -> Body:
        identity = self._service.identity
        name, created_s = identity.model, identity.created_s
        return {
            "id": name,
            "object": "model",
            "created": created_s,
            "owned_by": "tpi",
            "type": "model",
            "display_name": name,
            "created_at": datetime.fromtimestamp(created_s, UTC).isoformat(),
            "lifecycle": "active",
            "max_model_len": self._service.n_context,
            "max_input_tokens": self._service.n_context,
        }
