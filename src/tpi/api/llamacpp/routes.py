"""All routes of llama.cpp's server that are not OpenAI's."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from tpi.api.description import described
from tpi.api.llamacpp.bodies import ToldCompletion, ToldError
from tpi.api.llamacpp.completions import CompletionRoutes
from tpi.api.llamacpp.slots import SlotRoutes
from tpi.api.llamacpp.texts import (
    TextRoutes,
    ToldPrompt,
    ToldProps,
    ToldRanks,
    ToldSlot,
    ToldText,
    ToldTokens,
    ToldVector,
)
from tpi.api.openai.told import ToldError as OpenAiError
from tpi.api.parsed import new_router
from tpi.api.service import Service

_EVENTS = "text/event-stream"


def make_router(service: Service) -> APIRouter:
    """To be included in the application."""
    router, completions, texts = new_router(), CompletionRoutes(service), TextRoutes(service)
    add = router.add_api_route
    told = described(ToldCompletion | list[ToldCompletion], ToldError, streams=_EVENTS)
    add("/completion", completions.complete, methods=["POST"], responses=told)
    add(
        "/infill", completions.infill, methods=["POST"], responses=described(ToldCompletion, ToldError, streams=_EVENTS)
    )
    add("/tokenize", texts.tokenize, methods=["POST"], responses=described(ToldTokens, ToldError))
    add("/detokenize", texts.detokenize, methods=["POST"], responses=described(ToldText, ToldError))
    add("/apply-template", texts.apply_template, methods=["POST"], responses=described(ToldPrompt, ToldError))
    add("/props", texts.props, methods=["GET"], responses=described(ToldProps, ToldError))
    add("/slots", texts.slots, methods=["GET"], responses=described(list[ToldSlot], ToldError))
    add("/embedding", texts.embed, methods=["POST"], responses=described(list[ToldVector], ToldError))
    add("/v1/rerank", texts.rank, methods=["POST"], responses=described(ToldRanks, OpenAiError))
    # By other names, and what cannot be done.
    others: dict[str, Callable[..., Any]] = {
        "/completions": completions.complete,
        "/embeddings": texts.embed,
        "/rerank": texts.rank,
        "/reranking": texts.rank,
        "/v1/reranking": texts.rank,
        "/slots/{slot_id}": SlotRoutes(service).change,
    }
    for path, route in others.items():
        add(path, route, methods=["POST"], include_in_schema=False)
    return router
