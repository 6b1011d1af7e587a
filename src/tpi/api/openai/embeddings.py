"""``/v1/embeddings``."""

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from tpi.api.connection import while_connected
from tpi.api.errors import Problem
from tpi.api.openai.base import Given, Tokens
from tpi.api.service import Service
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
        inputs = [service.vectors.tokens_of(item) if isinstance(item, str) else item for item in _items(asked.input)]
        for token in (token for tokens in inputs for token in tokens):
            service.check_token(token)
        vectors = await while_connected(request, service.vectors.embed(inputs))
        cut = [shortened(vector, asked.dimensions) for vector in vectors]
        told = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in cut]
        n_tokens = sum(map(len, inputs))
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {
                        "object": "embedding",
                        "index": index,
                        "embedding": told[index] if asked.encoding_format == "base64" else vector.tolist(),
                    }
                    for index, vector in enumerate(cut)
                ],
                "model": service.identity.model,
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            }
        )


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
