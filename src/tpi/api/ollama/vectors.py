"""``/api/embed``, and ``/api/embeddings`` as it was called before."""

import time

from fastapi import Request
from starlette.responses import Response

from tpi.api.connection import while_connected
from tpi.api.ollama.schema import EmbedRequest, OlderEmbedRequest
from tpi.api.openai.embeddings import check_dimensions, shortened
from tpi.api.service import Service
from tpi.api.streams import Body, large, raw
from tpi.api.workers import Going
from tpi.runtime.protocols import Float32Array


class VectorRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, asked: EmbedRequest, request: Request) -> Response:
        """What does not fit the context is cut, unless that is not wanted."""
        told, vectors = await self._embed(asked, request)
        return await large(
            self._service,
            lambda: told | {"embeddings": [raw(shortened(vector, asked.dimensions).tolist()) for vector in vectors]},
        )

    async def embed_one(self, asked: OlderEmbedRequest, request: Request) -> Response:
        _, [vector] = await self._embed(EmbedRequest(model=asked.model, input=asked.prompt), request)
        return await large(self._service, lambda: {"embedding": vector.tolist()})

    async def _embed(self, asked: EmbedRequest, request: Request) -> tuple[Body, list[Float32Array]]:
        """What is told beside the vectors; and these."""
        service, started = self._service, time.perf_counter()
        name = service.check_tagged(asked.model)
        check_dimensions(asked.dimensions, service.about.n_embd)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        most = service.n_context - 1 if asked.truncate is not False else None

        def read(going: Going) -> list[tuple[int, ...]]:
            inputs = list[tuple[int, ...]]()
            for text in texts:
                going.check()
                tokens = service.vectors.tokens_of(text)
                inputs.append(tokens if most is None else service.vectors.cut(tokens, most))
            return inputs

        inputs = await while_connected(request, service.workers.run(read))
        vectors = await while_connected(request, service.vectors.embed(inputs))
        told = {
            "model": name,
            "total_duration": round((time.perf_counter() - started) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": sum(map(len, inputs)),
        }
        return told, vectors
