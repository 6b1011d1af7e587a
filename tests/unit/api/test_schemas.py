"""Requests that are wrong in many places cost no more than those that are wrong in one."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.unit.api.scripted import Line, Played
from tpi.api.anthropic.schema import MessageRequest
from tpi.api.llamacpp.schema import (
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    InfillRequest,
    RankRequest,
)
from tpi.api.ollama import schema as ollama
from tpi.api.openai import embeddings
from tpi.api.openai import schema as openai
from tpi.api.openai.responses.schema import ResponseRequest
from tpi.engine.scheduler import Load

MODELS: tuple[type[BaseModel], ...] = (
    CompletionRequest, DetokenizeRequest, EmbeddingRequest, InfillRequest, MessageRequest, RankRequest, ResponseRequest,
    embeddings.EmbeddingRequest, ollama.ChatRequest, ollama.EmbedRequest, ollama.GenerateRequest, openai.ChatRequest,
    openai.CompletionRequest,
)  # fmt: skip
MANY = 50_000


def lists(schema: Any) -> Iterator[dict[str, Any]]:
    """Those in what pydantic made of a model."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for part in schema.values():
            yield from lists(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from lists(part)


@pytest.mark.parametrize("model", MODELS)
def test_lists_have_bounds_and_are_given_up_at_once(model: type[BaseModel]) -> None:
    found = [one for one in lists(model.__pydantic_core_schema__) if one["items_schema"]["type"] != "any"]
    assert found or model is ollama.GenerateRequest
    assert [one for one in found if not (one.get("fail_fast") and one.get("max_length"))] == []


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (openai.CompletionRequest, {"prompt": [1, "a"] * MANY}),
        (openai.CompletionRequest, {"prompt": [[1, "a"]] * MANY}),
        (openai.CompletionRequest, {"prompt": "a", "logit_bias": {str(n): "x" for n in range(MANY)}}),
        (openai.ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}] * 100}),
        (embeddings.EmbeddingRequest, {"input": [1, "a"] * MANY}),
        (CompletionRequest, {"prompt": [None] * MANY}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {str(n): "x" for n in range(MANY)}}),
    ],
)
def test_of_many_mistakes_few_are_told(model: type[BaseModel], given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(given)
    assert refused.value.error_count() < 10


@pytest.mark.parametrize(
    "bias", [[[1.5, 1]], [[True, 1]], {"1" * 5000: 1}, [["1" * 5000, 1]], [[10**400, 1]], [[99999, 1]]]
)
def test_biases_of_what_is_no_token(server: Played, bias: Any) -> None:
    status, told = server.post("/completion", {"prompt": "a", "logit_bias": bias})
    assert status == 400 and len(told["error"]["message"]) < 300
    if isinstance(bias, dict):
        assert server.post("/v1/completions", {"prompt": "a", "logit_bias": bias})[0] == 400


def test_how_many_answers_a_request_may_want(server: Played) -> None:
    """No more than half of those that may wait; and with whatever seed."""
    server.engine.line = Line(("a",))
    asked = {"prompt": ["a"] * 16, "n": 2, "max_tokens": 1, "seed": (1 << 63) - 1}
    status, told = server.post("/v1/completions", asked)
    assert status == 200 and len(told["choices"]) == 32
    assert [sampling.seed for sampling, _ in server.engine.settings[-2:]] == [(1 << 63) - 1, 0]
    status, told = server.post("/v1/completions", asked | {"n": 3})
    assert status == 400 and "16 prompts with 3 answers to each are 48 answers, at most 32" in told["error"]["message"]
    assert server.post("/v1/completions", {"prompt": "a", "n": 2, "seed": -1})[0] == 200
    assert server.engine.settings[-1][0].seed is None


def test_one_request_leaves_places_for_others(server: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    server.engine.line = Line(("a",))
    for n_waiting, n, expected in ((44, 10, 200), (44, 11, 429), (63, 1, 200), (64, 1, 200)):
        monkeypatch.setattr(server.engine.scheduler, "load", Load(4, n_waiting, 0))
        status, told = server.post("/v1/completions", {"prompt": "a", "n": n})
        assert status == expected, "whether a single one finds a place is the queue's to say"
        if status == 429:
            assert "half of the 20 places that are free now may be taken: try again later" in told["error"]["message"]


def test_an_answer_that_was_stopped_from_outside_is_no_answer(server: Played) -> None:
    server.engine.line = Line(("a",), finish="cancelled")
    status, told = server.post("/v1/completions", {"prompt": "a"})
    assert status == 503 and told["error"]["message"] == "the answer was stopped by the server: ask again"
