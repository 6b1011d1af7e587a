"""All routes of llama.cpp's server that are not OpenAI's."""

from fastapi import APIRouter

from tpi.api.description import described
from tpi.api.llamacpp.bodies import ToldCompletion, ToldError
from tpi.api.llamacpp.completions import CompletionRoutes
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
from tpi.api.service import Service

_EVENTS = "text/event-stream"


def make_router(service: Service) -> APIRouter:
    """To be included in the application."""
    router, completions, texts = APIRouter(), CompletionRoutes(service), TextRoutes(service)
    add = router.add_api_route
    for path in ("/completion", "/completions"):
        told = described(ToldCompletion | list[ToldCompletion], ToldError, streams=_EVENTS)
        add(path, completions.complete, methods=["POST"], responses=told)
    add(
        "/infill", completions.infill, methods=["POST"], responses=described(ToldCompletion, ToldError, streams=_EVENTS)
    )
    add("/tokenize", texts.tokenize, methods=["POST"], responses=described(ToldTokens, ToldError))
    add("/detokenize", texts.detokenize, methods=["POST"], responses=described(ToldText, ToldError))
    add("/apply-template", texts.apply_template, methods=["POST"], responses=described(ToldPrompt, ToldError))
    add("/props", texts.props, methods=["GET"], responses=described(ToldProps, ToldError))
    add("/slots", texts.slots, methods=["GET"], responses=described(list[ToldSlot], ToldError))
    add("/slots/{slot_id}", texts.change_slot, methods=["POST"], responses=described(None, ToldError))
    for path in ("/embedding", "/embeddings"):
        add(path, texts.embed, methods=["POST"], responses=described(list[ToldVector], ToldError))
    for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"):
        error = OpenAiError if path.startswith("/v1") else ToldError
        add(path, texts.rank, methods=["POST"], responses=described(ToldRanks, error))
    return router
