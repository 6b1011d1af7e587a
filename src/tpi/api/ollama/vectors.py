"""``/api/embed``, and ``/api/embeddings`` as it was called before."""

import time

from fastapi import Request

from tpi.api.connection import while_connected
from tpi.api.ollama.schema import EmbedRequest, OlderEmbedRequest
from tpi.api.openai.embeddings import check_dimensions, shortened
from tpi.api.service import Service
from tpi.api.streams import Body
from tpi.api.workers import Going


class VectorRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, asked: EmbedRequest, request: Request) -> Body:
        """What does not fit the context is cut, unless that is not wanted."""
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
        return {
            "model": name,
            "embeddings": [shortened(vector, asked.dimensions).tolist() for vector in vectors],
            "total_duration": round((time.perf_counter() - started) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": sum(map(len, inputs)),
        }

    async def embed_one(self, asked: OlderEmbedRequest, request: Request) -> Body:
        told = await self.embed(EmbedRequest(model=asked.model, input=asked.prompt), request)
        return {"embedding": told["embeddings"][0]}
