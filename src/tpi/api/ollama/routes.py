"""All routes of Ollama's API that a server of one model can answer."""

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tpi.api.asks import Ask
from tpi.api.connection import while_connected
from tpi.api.description import described
from tpi.api.errors import problem_of
from tpi.api.ollama.asks import read_chat, read_generation, read_sampling, read_text
from tpi.api.ollama.models import ModelRoutes
from tpi.api.ollama.schema import Asked, ChatRequest, GenerateRequest, Options
from tpi.api.ollama.told import (
    Shown,
    ToldChat,
    ToldError,
    ToldModels,
    ToldText,
    ToldVector,
    ToldVectors,
    ToldVersion,
    calls_body,
    figures,
    now,
)
from tpi.api.ollama.vectors import VectorRoutes
from tpi.api.openai.bodies import chat_logprobs
from tpi.api.parsed import new_router
from tpi.api.service import Service
from tpi.api.streams import Body, line, stream, whole
from tpi.engine.generation import TokenLogprob
from tpi.engine.reading import ChatDelta, Reply
from tpi.errors import TpiError

_LINES = "application/x-ndjson"
_RUNS = "Ollama is running"
"""What clients look for before they ask."""


def make_router(service: Service) -> APIRouter:
    """To be included in the application."""
    router, models, answers = new_router(), ModelRoutes(service), _AnswerRoutes(service)
    add = router.add_api_route
    told = described(ToldChat, ToldError, streams=_LINES)
    add("/api/chat", answers.chat, methods=["POST"], responses=told)
    told = described(ToldText, ToldError, streams=_LINES)
    add("/api/generate", answers.generate, methods=["POST"], responses=told)
    add("/api/tags", models.all, methods=["GET"], responses=described(ToldModels, ToldError))
    add("/api/ps", models.running, methods=["GET"], responses=described(ToldModels, ToldError))
    add("/api/show", models.show, methods=["POST"], responses=described(Shown, ToldError))
    add("/api/version", models.version, methods=["GET"], responses=described(ToldVersion, ToldError))
    vectors = VectorRoutes(service)
    add("/api/embed", vectors.embed, methods=["POST"], responses=described(ToldVectors, ToldError))
    add("/api/embeddings", vectors.embed_one, methods=["POST"], responses=described(ToldVector, ToldError))
    add("/", _tell_running, methods=["GET", "HEAD"], include_in_schema=False)
    return router


async def _tell_running() -> Response:
    return PlainTextResponse(_RUNS)


class _AnswerRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        name = self._service.check_tagged(asked.model)
        if not asked.messages:
            return JSONResponse(_nothing(asked, name, message={"role": "assistant", "content": ""}))
        ask = self._ask(asked, read_chat(asked), raw=False)

        def tell(content: str, thinking: str, reply: Reply | None) -> Body:
            message: Body = {"role": "assistant", "content": content}
            message |= {"thinking": thinking} if thinking else {}
            if reply is not None and reply.tool_calls:
                message["tool_calls"] = calls_body(reply.tool_calls)
            return {"message": message}

        return await self._answer(asked, ask, name, request, tell)

    async def generate(self, asked: GenerateRequest, request: Request) -> Response:
        name = self._service.check_tagged(asked.model)
        if not asked.prompt:
            return JSONResponse(_nothing(asked, name, response=""))
        ask = self._ask(asked, read_text(asked), raw=bool(asked.raw))

        def tell(content: str, thinking: str, reply: Reply | None) -> Body:
            return {"response": content, **({"thinking": thinking} if thinking else {})}

        return await self._answer(asked, ask, name, request, tell)

    def _ask(self, asked: Asked, prompt: Any, *, raw: bool) -> Ask:
        service = self._service
        sampling = read_sampling(asked.options or Options(), service.sampling)
        return Ask((prompt,), sampling, read_generation(asked, service.n_context, raw=raw))

    async def _answer(self, asked: Asked, ask: Ask, name: str, request: Request, tell: Any) -> Response:
        """Calls of tools are told as a whole, before the last line."""
        answerings = await while_connected(request, self._service.begin(ask))

        def head(logprobs: Sequence[TokenLogprob] = ()) -> Body:
            told = chat_logprobs(logprobs, self._service.text_of)["content"] if logprobs else None
            return {"model": name, "created_at": now(), **({"logprobs": told} if told is not None else {})}

        if not asked.streams:
            [reply] = await whole(request, answerings)
            return JSONResponse(
                {**head(reply.logprobs), **tell(reply.content, reply.reasoning, reply), **figures(reply)}
            )

        def grow(_: int, item: ChatDelta | Reply) -> Iterable[bytes]:
            if isinstance(item, Reply):
                if item.tool_calls:
                    yield line({**head(), **tell("", "", item), "done": False})
                yield line({**head(), **tell("", "", None), **figures(item)})
            elif item.content or item.reasoning or item.logprobs:
                yield line({**head(item.logprobs), **tell(item.content, item.reasoning, None), "done": False})

        return stream(answerings, grow, _tell_error, media_type=_LINES)


def _tell_error(error: TpiError) -> Iterable[bytes]:
    """In the middle of a stream."""
    yield line(problem_of(error).ollama_body)


def _nothing(asked: Asked, name: str, **more: Any) -> Body:
    """To a request without a prompt, which loads a model or lets it go elsewhere: here it stays."""
    reason = "unload" if asked.keep_alive in (0, "0", "0s", "0m") else "load"
    return {"model": name, "created_at": now(), **more, "done": True, "done_reason": reason}
