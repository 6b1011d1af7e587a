"""Who gets through to the application behind the guard, without a server."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tpi.api.guards import Guard, Rules

PLAIN = Rules("127.0.0.1")
KEYED = Rules("0.0.0.0", ("first", "second"))


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(
    rules: Rules,
    headers: dict[str, str] | None = None,
    method: str = "GET",
    path: str = "/v1/models",
    body: Sequence[bytes] = (b"",),
) -> int:
    """The status of the answer."""
    parts, sent = list(body), list[Any]()
    names = {"host": "localhost:8080"} | (headers or {})
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in names.items()],
    }

    async def receive() -> Any:
        if not parts:
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(_answer, rules)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST", "localhost."]
)
def test_names_of_this_server(host: str) -> None:
    assert ask(PLAIN, {"host": host}) == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil", "[", "::1", "[::1", "@"]
)
def test_names_of_others(host: str) -> None:
    """A name that somebody's DNS has pointed here."""
    assert ask(PLAIN, {"host": host}) == 403


@pytest.mark.parametrize(
    ("origin", "cors", "status"),
    [
        ("http://localhost:8080", (), 200),
        ("http://localhost:8081", (), 403),
        ("http://evil.example", (), 403),
        ("null", (), 403),
        ("http://page.example", ("http://page.example",), 200),
        ("http://page.example.evil", ("http://page.example",), 403),
        ("http://evil.example", ("*",), 200),
    ],
)
def test_pages(origin: str, cors: tuple[str, ...], status: int) -> None:
    assert ask(Rules("127.0.0.1", (), cors), {"origin": origin}) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer first"}, 200),
        ({"authorization": "Bearer second"}, 200),
        ({"x-api-key": "second"}, 200),
        ({"authorization": "Bearer firs"}, 401),
        ({"authorization": "Bearer firstsecond"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer \xff"}, 401),
    ],
)
def test_keys(headers: dict[str, str], status: int) -> None:
    """Whoever has one may come by any name."""
    assert ask(KEYED, {"host": "home.example"} | headers) == status
    assert ask(KEYED, headers, path="/health") == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [("application/json", 200), ("application/json; charset=utf-8", 200), ("text/plain", 415), ("", 415)],
)
def test_only_json_is_read(kind: str, status: int) -> None:
    """A page can send text to any server without asking first, but no JSON."""
    assert ask(PLAIN, {"content-type": kind}, "POST") == status


@pytest.mark.parametrize(
    ("body", "length", "status"),
    [
        ([b"x" * 50], "50", 200),
        ([b"x" * 50, b"x" * 50], None, 200),
        ([b"x" * 50, b"x" * 51], None, 413),
        ([b"x"], "101", 413),
        ([b"x"], "-1", 413),
        ([b"x"], "\xb2", 413),
        ([b"x" * 300] * 20, None, 413),
    ],
)
def test_long_bodies(body: list[bytes], length: str | None, status: int) -> None:
    rules = Rules("127.0.0.1", max_body_bytes=100)
    headers = {"content-type": "application/json"} | ({} if length is None else {"content-length": length})
    assert ask(rules, headers, "POST", body=body) == status
