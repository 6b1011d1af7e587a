"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``."""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tpi.api.connection import while_connected
from tpi.api.errors import Problem, problem_of, unsupported
from tpi.api.openai.bodies import Bodies, Body, chat_logprobs, completion_logprobs, finish_reason
from tpi.api.openai.schema import MAX_PROMPTS, ChatRequest, CompletionRequest, Drawing
from tpi.api.openai.settings import read_generation, read_sampling
from tpi.api.service import Answering, Service, merged
from tpi.engine.chat import Message
from tpi.engine.engine import Prompt
from tpi.engine.generation import Answer, Delta
from tpi.errors import TpiError

_ROLES = {"developer": "system"}
"""By the names that templates know."""

MakeChoice = Callable[[int, Delta | Answer], Body]


def make_router(service: Service) -> APIRouter:
    """All routes."""
    router, routes = APIRouter(), _Routes(service)
    router.add_api_route("/v1/models", routes.models, methods=["GET"])
    router.add_api_route("/v1/models/{model:path}", routes.model, methods=["GET"])
    router.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"])
    router.add_api_route("/v1/completions", routes.complete, methods=["POST"])
    return router


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self) -> Body:
        return {"object": "list", "data": [self._model()]}

    async def model(self, model: str) -> Body:
        self._check_model(model)
        return self._model()

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        self._check_model(asked.model)
        _check_chat(asked)
        service = self._service
        n_logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        max_tokens = asked.max_completion_tokens or asked.max_tokens
        settings = read_generation(asked, service.n_context, max_tokens, n_logprobs, raw=False)
        sampling = read_sampling(asked, service.sampling, service.vocabulary_size)
        messages = [Message(_ROLES.get(message.role, message.role), message.text) for message in asked.messages]
        prompt = await while_connected(request, service.chat_prompt(messages))
        answerings = service.answers([prompt], asked.n or 1, sampling, settings)
        bodies = Bodies(service.identity.model, int(time.time()), "chat.completion", asked.n or 1)
        if asked.stream:

            def make_choice(index: int, item: Delta | Answer) -> Body:
                if isinstance(item, Answer):
                    return {"index": index, "delta": {}, "logprobs": None, "finish_reason": finish_reason(item)}
                logprobs = chat_logprobs(item.logprobs, service.text_of) if item.logprobs else None
                return {"index": index, "delta": {"content": item.text}, "logprobs": logprobs, "finish_reason": None}

            first = {"role": "assistant", "content": "", "refusal": None}
            opening = [
                {"index": index, "delta": first, "logprobs": None, "finish_reason": None}
                for index in range(len(answerings))
            ]
            return _stream(asked, bodies, answerings, opening, make_choice)

        def choice(index: int, answer: Answer, deltas: Sequence[Delta]) -> Body:
            tokens = [token for delta in deltas for token in delta.logprobs]
            return {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None if n_logprobs is None else chat_logprobs(tokens, service.text_of),
                "finish_reason": finish_reason(answer),
            }

        return await _whole(request, bodies, answerings, choice)

    async def complete(self, asked: CompletionRequest, request: Request) -> Response:
        self._check_model(asked.model)
        if asked.suffix:
            raise unsupported("suffix", "text that comes after the answer")
        if asked.best_of not in (None, asked.n or 1):
            raise unsupported("best_of", "a choice among more answers than are given")
        service, n = self._service, asked.n or 1
        settings = read_generation(asked, service.n_context, asked.max_tokens or 16, asked.logprobs, raw=True)
        sampling = read_sampling(asked, service.sampling, service.vocabulary_size)
        prompts = await while_connected(request, self._prompts(asked.prompt))
        echoed = [text if asked.echo else "" for text, _ in prompts for _ in range(n)]
        answerings = service.answers([prompt for _, prompt in prompts], n, sampling, settings)
        bodies = Bodies(service.identity.model, int(time.time()), "text_completion", n)
        if asked.stream:
            offsets = [len(text) for text in echoed]

            def make_choice(index: int, item: Delta | Answer) -> Body:
                if isinstance(item, Answer):
                    return {"index": index, "text": "", "logprobs": None, "finish_reason": finish_reason(item)}
                logprobs = (
                    completion_logprobs(item.logprobs, service.text_of, offsets[index]) if item.logprobs else None
                )
                offsets[index] += len(item.text)
                return {"index": index, "text": item.text, "logprobs": logprobs, "finish_reason": None}

            opening = [
                {"index": index, "text": text, "logprobs": None, "finish_reason": None}
                for index, text in enumerate(echoed)
                if text
            ]
            return _stream(asked, bodies, answerings, opening, make_choice)

        def choice(index: int, answer: Answer, deltas: Sequence[Delta]) -> Body:
            tokens = [token for delta in deltas for token in delta.logprobs]
            logprobs = completion_logprobs(tokens, service.text_of, len(echoed[index]))
            return {
                "index": index,
                "text": echoed[index] + answer.text,
                "logprobs": None if asked.logprobs is None else logprobs,
                "finish_reason": finish_reason(answer),
            }

        return await _whole(request, bodies, answerings, choice)

    async def _prompts(self, given: str | list[int] | list[str] | list[list[int]]) -> list[tuple[str, Prompt]]:
        """Texts and their tokens, of which either was given: one, or several."""
        tokens = [] if isinstance(given, str) else [item for item in given if isinstance(item, int)]
        items = [given] if isinstance(given, str) else [item for item in given if not isinstance(item, int)]
        if not 1 <= len(items) + bool(tokens) <= MAX_PROMPTS:
            raise Problem(400, f"there are {len(items)} prompts, from 1 to {MAX_PROMPTS} are allowed", param="prompt")
        prompts = list[tuple[str, Prompt]]()
        for item in [tokens] if tokens else items:
            if isinstance(item, str):
                prompts.append((item, await self._service.raw_prompt(item)))
                continue
            for token in item:
                if not 0 <= token < self._service.vocabulary_size:
                    most = self._service.vocabulary_size - 1
                    raise Problem(400, f"{token} is no token: there are 0 to {most}", param="prompt")
            prompts.append((self._text(item), Prompt(tuple(item))))
        return prompts

    def _text(self, prompt: Sequence[int]) -> str:
        return b"".join(map(self._service.text_of, prompt)).decode("utf-8", "replace")

    def _check_model(self, name: str | None) -> None:
        identity = self._service.identity
        if name is not None and name != identity.model and not identity.takes_any_name:
            raise Problem(
                404,
                f"there is no model {name!r} here, but {identity.model!r} (start with --any-model to take any name)",
                code="model_not_found",
                param="model",
            )

    def _model(self) -> Body:
        identity = self._service.identity
        return {"id": identity.model, "object": "model", "created": identity.created_s, "owned_by": "tpi"}


def _check_chat(asked: ChatRequest) -> None:
    if (asked.tools and asked.tool_choice != "none") or asked.functions:
        raise unsupported("tools", "calling tools")
    if asked.response_format is not None and asked.response_format.type != "text":
        raise unsupported("response_format", f"a response format of type {asked.response_format.type!r}")


async def _whole(
    request: Request,
    bodies: Bodies,
    answerings: Sequence[Answering],
    choice: Callable[[int, Answer, Sequence[Delta]], Body],
) -> Response:
    """All answers in one response, when they are complete."""
    deltas: list[list[Delta]] = [[] for _ in answerings]

    async def collect() -> None:
        async for index, item in merged(answerings):
            if isinstance(item, Delta):
                deltas[index].append(item)

    await while_connected(request, collect())
    answers = [answering.answer for answering in answerings]
    choices = [choice(index, answer, deltas[index]) for index, answer in enumerate(answers)]
    return JSONResponse(bodies.whole(choices, answers))


def _stream(
    asked: Drawing, bodies: Bodies, answerings: Sequence[Answering], opening: Sequence[Body], make_choice: MakeChoice
) -> StreamingResponse:
    """The answers as they grow. When the caller hangs up, the stream is closed, and what it waits for with it."""
    tells_usage = asked.stream_options is not None and asked.stream_options.include_usage
    more: dict[str, Any] = {"usage": None} if tells_usage else {}

    async def events() -> AsyncIterator[bytes]:
        try:
            for begun in opening:
                yield _event(bodies.chunk([begun], **more))
            async for index, item in merged(answerings):
                yield _event(bodies.chunk([make_choice(index, item)], **more))
            if tells_usage:
                yield _event(bodies.chunk([], usage=bodies.usage([answering.answer for answering in answerings])))
            yield b"data: [DONE]\n\n"
        except TpiError as error:
            yield _event(problem_of(error).body)
        finally:
            for answering in answerings:
                answering.cancel()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(body: Body) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
