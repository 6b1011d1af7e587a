"""``/completion`` and ``/infill``."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from tpi.api.asks import Ask, TextAsk
from tpi.api.connection import while_connected
from tpi.api.errors import problem_of, unsupported
from tpi.api.llamacpp.asks import read_generation, read_grammar, read_prompts, read_sampling
from tpi.api.llamacpp.bodies import Bodies
from tpi.api.llamacpp.schema import CompletionFields, CompletionRequest, InfillRequest
from tpi.api.service import Service
from tpi.api.streams import event, stream, whole
from tpi.api.workers import Going
from tpi.engine.reading import ChatDelta, Reply
from tpi.errors import TpiError

_MARKS = {
    "pre": ("prefix", "<|fim_prefix|>", "<fim_prefix>", "<PRE>", "<\uff5cfim\u2581begin\uff5c>", "<|code_prefix|>"),
    "suf": ("suffix", "<|fim_suffix|>", "<fim_suffix>", "<SUF>", "<\uff5cfim\u2581hole\uff5c>", "<|code_suffix|>"),
    "mid": ("middle", "<|fim_middle|>", "<fim_middle>", "<MID>", "<\uff5cfim\u2581end\uff5c>", "<|code_middle|>"),
    "rep": ("repo", "<|repo_name|>", "<|reponame|>"),
    "sep": ("file_separator", "<|file_sep|>", "<file_sep>"),
}
"""What stands before, after and in the middle of a gap: the names of model files, and the tokens' own."""


class CompletionRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def complete(self, asked: CompletionRequest, request: Request) -> Response:
        """One answer, or a list of them where several prompts or answers are asked for."""
        service = self._service
        read = service.workers.run(lambda going: read_prompts(asked.prompt, service, going))
        prompts = await while_connected(request, read)
        is_sole = len(prompts) * (asked.n_cmpl or 1) == 1 and not _are_several(asked.prompt)
        return await self._answer(asked, prompts, request, is_sole=is_sole)

    async def infill(self, asked: InfillRequest, request: Request) -> Response:
        """What comes between two texts, by a model that was trained to find it."""
        gap = await while_connected(request, self._service.workers.run(lambda going: self._gap(asked, going)))
        return await self._answer(asked, [TextAsk(tokens=gap)], request, is_sole=True)

    async def _answer(
        self, asked: CompletionFields, prompts: Sequence[TextAsk], request: Request, *, is_sole: bool
    ) -> Response:
        service, grammar = self._service, read_grammar(asked)
        service.check_model(asked.model)
        settings = read_generation(asked, service.n_context)
        sampling = await service.work(lambda: read_sampling(asked, service))
        prompts = [dataclasses.replace(prompt, grammar=grammar) for prompt in prompts]
        ask = Ask(tuple(prompts), sampling, settings, asked.n_cmpl or 1)
        answerings = await while_connected(request, service.begin(ask))
        told = {**dataclasses.asdict(sampling), "n_predict": asked.n_predict, "stop": list(settings.stop)}
        bodies = Bodies(
            service.identity.model,
            told,
            service.text_of,
            has_tokens=asked.return_tokens,
            has_probabilities=bool(asked.n_probs),
        )
        is_empty = asked.n_predict == 0
        if not asked.stream or is_empty:
            replies = await whole(request, answerings)
            found = [bodies.whole(index, reply, is_empty=is_empty) for index, reply in enumerate(replies)]
            return JSONResponse(found[0] if is_sole else found)

        def tell(index: int, item: ChatDelta | Reply) -> Iterable[bytes]:
            yield event(bodies.end(index, item) if isinstance(item, Reply) else bodies.grown(index, item))

        return stream(answerings, tell, _tell_error)

    def _gap(self, asked: InfillRequest, going: Going) -> tuple[int, ...]:
        """The prompt of a gap: other files, what stands before, what after, and a beginning of what is between.

        Raises:
            Problem: the model knows no such marks.
        """
        marks = {name: self._mark(name) for name in _MARKS}
        pre, suf, mid, sep, rep = (marks[name] for name in ("pre", "suf", "mid", "sep", "rep"))
        if pre is None or suf is None or mid is None:
            raise unsupported("input_prefix", "filling gaps with a model that has no tokens for that")
        tokens = list[int]()
        for extra in asked.input_extra or ():
            going.check()
            if sep is not None:
                tokens += [rep] if rep is not None and not tokens else []
                tokens += [sep]
            tokens += self._plain(f"{extra.filename}\n{extra.text}\n")
        tokens += [pre, *self._plain(asked.input_prefix), suf, *self._plain(asked.input_suffix), mid]
        tokens += self._plain(asked.prompt)
        return (*self._service.tokenize("", add_special=True, parse_special=False)[:1], *tokens)

    def _plain(self, text: str) -> list[int]:
        self._service.check_text(text)
        return self._service.tokenize(text, add_special=False, parse_special=False) if text else []

    def _mark(self, name: str) -> int | None:
        """By what the file says, or else by its usual texts."""
        service, (older, *texts) = self._service, _MARKS[name]
        for key in (f"tokenizer.ggml.fim_{name}_token_id", f"tokenizer.ggml.{older}_token_id"):
            value = service.about.metadata.get(key)
            if isinstance(value, int) and 0 <= value < service.vocabulary_size:
                return value
        for text in texts:
            found = service.tokenize(text, add_special=False, parse_special=True)
            if len(found) == 1 and service.text_of(found[0]) == text.encode():
                return found[0]
        return None


def _are_several(prompt: Any) -> bool:
    """Prompts came as a list, which is answered by one."""
    return isinstance(prompt, list) and not any(isinstance(item, int) for item in prompt)


def _tell_error(error: TpiError) -> Iterable[bytes]:
    """In the middle of a stream."""
    yield event(problem_of(error).llama_body)
