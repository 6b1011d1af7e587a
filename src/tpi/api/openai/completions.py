"""``/v1/completions``."""

import time
from collections.abc import Iterable, Sequence

from fastapi import Request
from starlette.responses import JSONResponse, Response

from tpi.api.asks import Ask, TextAsk
from tpi.api.connection import while_connected
from tpi.api.errors import Problem, unsupported
from tpi.api.openai.bodies import Bodies, completion_logprobs
from tpi.api.openai.chat import finish_reason, tell_error
from tpi.api.openai.grammars import read_grammar
from tpi.api.openai.schema import MAX_PROMPTS, CompletionRequest
from tpi.api.openai.settings import read_generation, read_sampling
from tpi.api.refusals import OF_BOTH
from tpi.api.service import Service
from tpi.api.streams import Body, event, stream, whole
from tpi.api.values import refuse
from tpi.engine.reading import ChatDelta, Reply
from tpi.engine.turns import Grammar

_DEFAULT_TOKENS = 16


class CompletionRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, asked: CompletionRequest, request: Request) -> Response:
        service, n = self._service, asked.n or 1
        service.check_model(asked.model)
        ask = await service.work(lambda: self._read(asked))
        answerings = await while_connected(request, service.begin(ask))
        texts = [""] * len(ask.prompts)
        if asked.echo:
            asks = [item for item in ask.prompts if isinstance(item, TextAsk)]
            texts = await service.work(lambda: [item.text or service.text(item.tokens) for item in asks])
        echoed = [text for text in texts for _ in range(n)]
        bodies = Bodies(service.identity.model, int(time.time()), "text_completion", n)
        if not asked.stream:
            replies = await whole(request, answerings)
            choices = [self._choice(index, reply, echoed[index], asked) for index, reply in enumerate(replies)]
            return JSONResponse(bodies.whole(choices, replies))
        usage: Body = {"usage": None} if asked.tells_usage else {}

        def tell(index: int, item: ChatDelta | Reply) -> Iterable[bytes]:
            if isinstance(item, Reply):
                yield event(bodies.chunk([_choice(index, "", finish=finish_reason(item))], **usage))
                return
            start = len(echoed[index])
            logprobs = completion_logprobs(item.logprobs, service.text_of, start) if item.logprobs else None
            yield event(bodies.chunk([_choice(index, item.content, logprobs)], **usage))

        def close(replies: Sequence[Reply]) -> Iterable[bytes]:
            if asked.tells_usage:
                yield event(bodies.chunk([], usage=bodies.usage(replies)))
            yield b"data: [DONE]\n\n"

        opening = [event(bodies.chunk([_choice(index, text)], **usage)) for index, text in enumerate(echoed) if text]
        return stream(answerings, tell, tell_error, opening=opening, closing=close)

    def _read(self, asked: CompletionRequest) -> Ask:
        if asked.suffix:
            raise unsupported("suffix", "text that comes after the answer")
        if asked.best_of not in (None, asked.n or 1):
            raise unsupported("best_of", "a choice among more answers than are given")
        if asked.echo and asked.logprobs is not None:
            raise unsupported("echo", "an echo with the logprobs of the prompt")
        refuse(asked.model_extra, OF_BOTH)
        service, grammar = self._service, read_grammar(asked)
        settings = read_generation(
            asked, service.n_context, asked.max_tokens or _DEFAULT_TOKENS, asked.logprobs, raw=True
        )
        sampling = read_sampling(asked, service.sampling, service.vocabulary_size)
        return Ask(_prompts(asked.prompt, grammar), sampling, settings, asked.n or 1)

    def _choice(self, index: int, reply: Reply, echoed: str, asked: CompletionRequest) -> Body:
        logprobs = completion_logprobs(reply.logprobs, self._service.text_of, len(echoed))
        text = echoed + reply.content
        return _choice(index, text, None if asked.logprobs is None else logprobs, finish_reason(reply))


def _prompts(given: str | list[int] | list[str] | list[list[int]], grammar: Grammar | None) -> tuple[TextAsk, ...]:
    """Texts or their tokens, of which either was given: one, or several."""
    tokens = () if isinstance(given, str) else tuple(item for item in given if isinstance(item, int))
    items = [given] if isinstance(given, str) else [item for item in given if not isinstance(item, int)]
    if not 1 <= len(items) + bool(tokens) <= MAX_PROMPTS:
        raise Problem(400, f"there are {len(items)} prompts, from 1 to {MAX_PROMPTS} are allowed", param="prompt")
    if tokens:
        return (TextAsk(tokens=tokens, grammar=grammar),)
    return tuple(
        TextAsk(item, grammar=grammar) if isinstance(item, str) else TextAsk(tokens=tuple(item), grammar=grammar)
        for item in items
    )


def _choice(index: int, text: str, logprobs: Body | None = None, finish: str | None = None) -> Body:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
