"""``/v1/embeddings``."""

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from tpi.api.connection import while_connected
from tpi.api.description import Given, Tokens
from tpi.api.errors import Problem
from tpi.api.service import Service
from tpi.api.streams import Body, large, raw
from tpi.api.workers import Going
from tpi.runtime.protocols import Float32Array

MAX_INPUTS = 2048
_Inputs = Field(max_length=MAX_INPUTS, fail_fast=True)


class EmbeddingRequest(Given):
    model: str | None = None
    input: str | Tokens | Annotated[list[str], _Inputs] | Annotated[list[Tokens], _Inputs]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class ToldVector(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    data: list[ToldVector]
    model: str
    usage: EmbeddingUsage


class EmbeddingRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, asked: EmbeddingRequest, request: Request) -> Response:
        service = self._service
        service.check_model(asked.model)
        check_dimensions(asked.dimensions, service.about.n_embd)
        items = _items(asked.input)

        def read(going: Going) -> list[Sequence[int]]:
            inputs = list[Sequence[int]]()
            for item in items:
                going.check()
                inputs.append(service.vectors.read(item) if isinstance(item, str) else item)
                service.check_tokens(inputs[-1], "input")
            return inputs

        inputs = await while_connected(request, service.workers.run(read))
        vectors = await while_connected(request, service.vectors.embed(inputs))
        n_tokens, in_base64 = sum(map(len, inputs)), asked.encoding_format == "base64"

        def make() -> Body:
            cut = [shortened(vector, asked.dimensions) for vector in vectors]
            return {
                "object": "list",
                "data": [raw(_told(index, vector, in_base64=in_base64)) for index, vector in enumerate(cut)],
                "model": service.identity.model,
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            }

        return await large(service, make)


def _told(index: int, vector: Float32Array, *, in_base64: bool) -> Body:
    values = base64.b64encode(vector.astype("<f4").tobytes()).decode() if in_base64 else vector.tolist()
    return {"object": "embedding", "index": index, "embedding": values}


def check_dimensions(n: int | None, n_embd: int) -> None:
    """Raises:
    Problem: vectors have fewer.
    """
    if n is not None and n > n_embd:
        raise Problem(400, f"dimensions is {n}, vectors of this model have {n_embd}", param="dimensions")


def shortened(vector: Float32Array, n: int | None) -> Float32Array:
    """Its first values, of length 1 again; None: all."""
    if n is None or n >= vector.size:
        return vector
    first = vector[:n]
    return first / np.float32(float(np.linalg.norm(first)) or 1.0)


def _items(given: str | list[int] | list[str] | list[list[int]]) -> Sequence[str | Sequence[int]]:
    """One or several texts, or their tokens."""
    if isinstance(given, str):
        return [given]
    tokens = [item for item in given if isinstance(item, int)]
    if tokens:
        return [tokens]
    items = [item for item in given if not isinstance(item, int)]
    if not items:
        raise Problem(400, "there is no input: give a text", param="input")
    return items
