"""The application as a whole: its health, heads, and what it makes of defects."""

import http.client
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.unit.api.scripted import Played, played
from tpi.errors import LinkError


def test_health_is_that_of_what_computes() -> None:
    with played() as server:
        assert server.post("/health", None, "GET") == (200, {"status": "ok"})
        server.engine.scheduler.failure = LinkError("w1 is gone")
        status, body = server.post("/health", None, "GET")
        assert (status, body["error"]["message"]) == (503, "w1 is gone")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/health", 200), ("/api/tags", 200), ("/v1/models", 200), ("/v1/models/x", 404), ("/v1/cluster/events", 405)],
)
def test_heads(server: Played, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request("HEAD", path)
    response = connection.getresponse()
    assert (response.status, response.read()) == (status, b"")
    assert int(response.headers["content-length"]) > 0
    connection.close()


@pytest.mark.parametrize(("path", "told"), [("/v1/chat/completions", "message"), ("/api/chat", None)])
def test_a_defect_is_told_without_details(path: str, told: str | None) -> None:
    def fail(_: Any) -> Any:
        raise ZeroDivisionError("details")

    with played() as server:
        server.engine.chat_prompt = fail  # type: ignore[assignment]
        status, body = server.post(path, {"messages": [{"role": "user", "content": "Hi"}]})
        error = body["error"] if told is None else body["error"][told]
        assert status == 500 and error == "a defect of the server ended the request: its log says more"


def test_what_is_wrong_is_told_in_few_words(server: Played) -> None:
    """Not as long as it came."""
    for body in ({"logit_bias": {"x" * 100_000: "y"}}, {"model": "x" * 100_000}):
        status, told = server.post("/v1/completions", {"prompt": "Hi", **body})
        assert status in (400, 404) and len(told["error"]["message"]) < 1000


@pytest.mark.parametrize(
    ("path", "asked", "place", "said"),
    [
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input", "List should have at most 2048 items, not 2049"),
        ("/v1/embeddings", {"input": 5}, "input", "Input should be a valid string"),
        ("/v1/embeddings", {"input": ["a", 5]}, "input.1", "Input should be a valid string"),
        ("/v1/embeddings", {"input": [[1], [2, "a"]]}, "input.1.1", "Input should be a valid integer"),
        ("/v1/embeddings", {"input": [999]}, "input", "999 is no token"),
        ("/v1/embeddings", {}, "input", "Field required"),
        ("/v1/completions", {"prompt": {"a": 1}}, "prompt", "Input should be a valid string"),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "messages.0.role", "Field required"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 4097}]},
            "messages.0.content",
            "List should have at most 4096 items, not 4097",
        ),
        ("/v1/responses/x/input_items?limit=z", None, "limit", "valid integer"),
        ("/v1/embeddings", None, None, "there is no GET /v1/embeddings here, but POST"),
    ],
)
def test_what_is_wrong_is_told_as_callers_name_it(
    server: Played, path: str, asked: Any, place: str | None, said: str
) -> None:
    status, told = server.post(path, asked, "POST" if asked is not None else "GET")
    assert status in (400, 405) and told["error"]["param"] == place and said in told["error"]["message"]
