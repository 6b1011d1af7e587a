"""Who gets through to the application behind the guard, without a server."""

import asyncio
import json
import threading
import urllib.request
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from tests.unit.api.scripted import Played
from tpi.api.guards import Guard, Rules
from tpi.api.keys import Key
from tpi.api.parsed import PARSED, new_router
from tpi.api.workers import Workers

PLAIN = Rules("127.0.0.1")
KEYED = Rules("0.0.0.0", (Key("laptop", "first"), Key("phone", "second")))


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
    app: ASGIApp | None = None,
) -> int:
    """The status of the answer."""
    parts, sent = list(body), list[Any]()
    names = {"host": "localhost:8080"} | (headers or {})
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in names.items()],
    }

    async def receive() -> Any:
        part = parts.pop(0)  # whoever waits for more than there is waits for ever
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(app or _answer, rules, Workers(1))(scope, receive, send))
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
        ("http://[", (), 403),
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
        ({"authorization": "bearer first"}, 200),
        ({"authorization": "first"}, 401),
        ({"authorization": "Basic first"}, 401),
        ({"authorization": "Bearer first", "x-api-key": "wrong"}, 200),
    ],
)
def test_keys(headers: dict[str, str], status: int) -> None:
    """Whoever has one may come by any name."""
    assert ask(KEYED, {"host": "home.example"} | headers) == status
    assert ask(KEYED, headers, path="/health") == 200
    assert ask(KEYED, {"host": "home.example"} | headers, "OPTIONS") == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [("application/json", 200), ("application/json; charset=utf-8", 200), ("text/plain", 415), ("", 415)],
)
def test_only_json_is_read(kind: str, status: int) -> None:
    """A page can send text to any server without asking first, but no JSON."""
    for length in ({"content-length": "1"}, {"transfer-encoding": "chunked"}):
        assert ask(PLAIN, {"content-type": kind, **length}, "POST", body=[b"1"]) == status


@pytest.mark.parametrize(
    ("body", "length", "status"),
    [
        ([b"1" * 50], "50", 200),
        ([b"1" * 50, b"1" * 50], None, 200),
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


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"a": [1e99, "1e999", "\\ud83d\\ude00", {"a": 1, "a": 2}]}', 200),
        (b'{"a": 1e999}', 400),
        (b"[-1E+400]", 400),
        (b"[1" + b"0" * 400 + b".5]", 400),
        (b'{"a": NaN}', 400),
        (b"[-Infinity]", 400),
        (b'"\xff"', 400),
        (b'"\xed\xa0\x80"', 400),
        (b'"\\ud800"', 400),
        (b'{"\\udc00": 1}', 400),
        (b"[" * 100_000, 400),
        (b"{} x", 400),
        (b"\xef\xbb\xbf{}", 400),
    ],
)
def test_only_well_formed_json_comes_through(body: bytes, status: int) -> None:
    assert ask(PLAIN, {"content-type": "application/json"}, "POST", body=[body[:3], body[3:]]) == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" + b"151643," * 299_999 + b"7]", 200),
        (b"[" + b"151643," * 300_000 + b"7]", 400),
        (b'["' + rb"{\"[:,\\" * 300_000 + b'"]', 200),
        (b'["a"' + b',"[]"' * 299_999 + b"]", 200),
        (b"[" + b"[]," * 50_000 + b"7]", 400),
        (b"{" + b",".join(b'"%d":0' % number for number in range(50_001)) + b"}", 400),
        (b"[" + b'"",' * 2_000_000 + b"7]", 400),
    ],
)
def test_bodies_that_say_too_many_things(body: bytes, status: int) -> None:
    """A long prompt comes through, as text and as numbers; what would hold up everything else is not even decoded."""
    assert ask(PLAIN, {"content-type": "application/json"}, "POST", body=[body]) == status


def test_what_is_parsed_is_let_go() -> None:
    """As soon as it is read, however long the answer takes."""
    app = FastAPI()
    router = new_router()

    async def answer(asked: dict[str, int], request: Request) -> Response:
        return Response(status_code=200 if asked == {"a": 1} and PARSED not in request.scope else 500)

    router.add_api_route("/", answer, methods=["POST"])
    app.include_router(router)
    assert ask(PLAIN, {"content-type": "application/json"}, "POST", "/", [b'{"a": 1}'], app) == 200


def test_all_bodies_together_have_a_bound() -> None:
    """Given back when a request has ended."""
    rules = Rules("127.0.0.1", max_body_bytes=100, max_bodies_bytes=150)
    inside, sent, n_done = list[int](), list[Any](), 0

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        inside.append(1)
        while len(inside) < 2 and len(sent) < 1:
            await asyncio.sleep(0.001)
        await _answer(scope, receive, send)

    async def request(guard: Guard) -> None:
        nonlocal n_done
        scope = {"type": "http", "method": "PUT", "path": "/", "headers": [(b"host", b"localhost")]}
        parts = [{"type": "http.request", "body": b"1" * 100, "more_body": False}]

        async def receive() -> Any:
            return parts.pop() if parts else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])

        await guard(scope, receive, send)
        n_done += 1

    async def run() -> None:
        guard = Guard(wait, rules, Workers(1))
        await asyncio.gather(request(guard), request(guard))
        await request(guard)

    asyncio.run(run())
    assert sent == [503, 200, 200] and n_done == 3


def test_what_is_made_of_a_body_counts_as_well() -> None:
    """It takes many times the bytes."""
    rules = Rules("127.0.0.1", max_bodies_bytes=10_000)
    for body, status in ((b"[" + b"[]," * 100 + b"0]", 503), (b'["' + b"[]," * 1000 + b'"]', 200)):
        assert ask(rules, {"content-type": "application/json"}, "POST", body=[body]) == status


def test_a_body_is_parsed_once(server: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones by the loop, large ones by a thread of the work that is bounded."""
    loads, threads = list[object](), list[str]()
    plain = msgspec.json.decode

    def decode(body: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return plain(body)

    monkeypatch.setattr(json, "loads", loads.append)
    monkeypatch.setattr(msgspec.json, "decode", decode)
    for n_bytes, thread in ((10, "tpi-api"), (1 << 18, "tpi-work_")):
        body = b'{"content": "%s"}' % (b"x" * n_bytes)
        request = urllib.request.Request(f"{server.url}/tokenize", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert len(plain(response.read())["tokens"]) == n_bytes
        assert threads.pop().startswith(thread) and not threads and not loads
