"""Texts and tokens, templates, and what the server is: what needs no pass. And vectors of texts, and their ranks."""

from typing import Any

import msgspec
from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from tpi.api.connection import while_connected
from tpi.api.errors import Problem, unsupported
from tpi.api.llamacpp.asks import read_prompts
from tpi.api.llamacpp.schema import DetokenizeRequest, EmbeddingRequest, RankRequest, TokenizeRequest
from tpi.api.openai.chats import read_chat
from tpi.api.openai.schema import ChatRequest
from tpi.api.service import Service
from tpi.api.streams import Body, large, raw
from tpi.api.workers import Going
from tpi.runtime.protocols import Float32Array
from tpi.version import VERSION

_EUCLIDEAN = 2


class ToldToken(BaseModel):
    id: int
    piece: str | list[int]


class ToldTokens(BaseModel):
    tokens: list[int | ToldToken]


class ToldText(BaseModel):
    content: str


class ToldPrompt(BaseModel):
    prompt: str


class ToldProps(BaseModel):
    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    build_info: str


class ToldSlot(BaseModel):
    id: int
    n_ctx: int
    speculative: bool
    is_processing: bool


class ToldVector(BaseModel):
    index: int
    embedding: list[list[float]]


class RankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class RankedDocument(BaseModel):
    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class ToldRanks(BaseModel):
    model: str
    object: str
    usage: RankUsage
    results: list[RankedDocument]


class TextRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def tokenize(self, asked: TokenizeRequest) -> Response:
        service = self._service

        def make() -> Body:
            tokens = service.tokenize(asked.content, add_special=asked.add_special, parse_special=asked.parse_special)
            if not asked.with_pieces:
                return {"tokens": tokens}
            told = {token: raw({"id": token, "piece": _piece(service.text_of(token))}) for token in set(tokens)}
            return {"tokens": [told[token] for token in tokens]}

        return await large(service, make)

    async def detokenize(self, asked: DetokenizeRequest) -> Response:
        service = self._service

        def make() -> Body:
            service.check_tokens(asked.tokens)
            return {"content": service.text(asked.tokens)}

        return await large(service, make)

    async def apply_template(self, asked: ChatRequest) -> Response:
        service, chat = self._service, read_chat(asked)
        prompt = await service.workers.run(lambda going: service.prompt(chat, going, is_asked=False))
        return await large(service, lambda: {"prompt": service.text(prompt.tokens)})

    async def props(self) -> Body:
        service, sampling = self._service, self._service.sampling
        params = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": sampling.penalty_window_tokens,
            "xtc_probability": sampling.xtc_probability,
            "xtc_threshold": sampling.xtc_threshold,
        }
        bos, eos = service.edges
        return {
            "default_generation_settings": {"n_ctx": service.n_context, "params": params},
            "total_slots": service.n_places,
            "model_alias": service.identity.model,
            "model_path": f"{service.identity.model}.gguf",
            "chat_template": service.about.template,
            "bos_token": bos,
            "eos_token": eos,
            "modalities": {"vision": False, "audio": False},
            "build_info": f"tpi {VERSION}",
        }

    async def slots(self) -> list[Body]:
        n_running = self._service.load().n_running
        return [
            {"id": number, "n_ctx": self._service.n_context, "speculative": False, "is_processing": number < n_running}
            for number in range(self._service.n_places)
        ]

    async def embed(self, asked: EmbeddingRequest, request: Request) -> Response:
        if asked.embd_normalize not in (None, _EUCLIDEAN):
            raise unsupported("embd_normalize", f"a normalisation of kind {asked.embd_normalize}")
        given = asked.content if asked.content is not None else asked.input
        if given is None:
            raise Problem(400, "there is no content: give a text", param="content")
        service = self._service

        def read(going: Going) -> list[tuple[int, ...]]:
            inputs = list[tuple[int, ...]]()
            for prompt in read_prompts(given, service, going):
                going.check()
                inputs.append(prompt.tokens or service.vectors.read(prompt.text))
            return inputs

        inputs = await while_connected(request, service.workers.run(read))
        vectors = service.vectors
        if vectors.are_of_tokens:
            told = await while_connected(request, vectors.embed_tokens(inputs, _told))
            return await large(service, lambda: told)
        rows = await while_connected(request, vectors.embed(inputs))
        return await large(service, lambda: [_told(index, row[None]) for index, row in enumerate(rows)])

    async def rank(self, asked: RankRequest, request: Request) -> Response:
        service = self._service
        service.check_model(asked.model)
        documents = [item if isinstance(item, str) else item.text for item in asked.documents]
        ranked = await while_connected(request, service.vectors.rank(asked.query, documents))
        order = sorted(range(len(ranked)), key=lambda index: -ranked[index].score)
        n_tokens = sum(item.n_tokens for item in ranked)
        told = {
            "model": service.identity.model,
            "object": "list",
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            "results": [
                {
                    "index": index,
                    "relevance_score": ranked[index].score,
                    **({"document": {"text": documents[index]}} if asked.return_documents else {}),
                }
                for index in order[: asked.top_n]
            ],
        }
        return await large(service, lambda: told)


def _told(index: int, rows: Float32Array) -> msgspec.Raw:
    return raw({"index": index, "embedding": [raw(row.tolist()) for row in rows]})


def _piece(data: bytes) -> str | list[int]:
    """Text, or bytes that are none by themselves."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
