"""Who may ask, and how much at once: everything that is decided before a request is understood. An ASGI application
around another, which gets only whole bodies of well-formed JSON.

Browsers send requests for any page that they show: a page of somebody else's may neither be answered (Origin) nor
pretend that this server is its own (Host, against DNS rebinding).
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpi.api.accesslog import KEY_NAME
from tpi.api.errors import RETRY_AFTER_S, Problem, problem_of
from tpi.api.keys import Key, find_key
from tpi.api.parsed import PARSED
from tpi.api.workers import Holders, Workers
from tpi.errors import BusyError
from tpi.native.allocator import give_back_freed

MAX_BODY_BYTES = 8 << 20
MAX_BODIES_BYTES = 64 << 20
BODY_S = 60.0
_DRAINED_PARTS, _DRAINED_S = 8, 2.0
_MAX_VALUES, _MAX_NAMES = 300_000, 50_000
"""Of a body; a prompt of token numbers has one value each. The decoder keeps the interpreter until it is done."""
_VALUE_BYTES, _NAME_BYTES = 64, 128
"""That each of them takes, about, when a body is parsed."""
_LARGE_BYTES = 1 << 20
_OPEN_PATHS = ("/health",)
_SLOW_BYTES = 1 << 17
"""To parse more takes longer than a thread costs."""
LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
"""By these only this device reaches a server."""


@dataclass(frozen=True)
class Rules:
    """``host`` is the address that is listened at; ``keys``, if any, are what callers must show one of;
    ``cors_origins`` are pages that may ask, ``*`` all. A body must be there within ``body_s``; all that are there at
    once have ``max_bodies_bytes`` at most, with what is made of them."""

    host: str
    keys: Sequence[Key] = ()
    cors_origins: Sequence[str] = ()
    max_body_bytes: int = MAX_BODY_BYTES
    max_bodies_bytes: int = MAX_BODIES_BYTES
    body_s: float = BODY_S


class _Refused(Exception):
    """``has_more``: of the body, something is still to come."""

    def __init__(self, problem: Problem, *, has_more: bool = False) -> None:
        self.problem, self.has_more = problem, has_more


class Guard:
    """Lets requests through that keep the rules."""

    def __init__(self, app: ASGIApp, rules: Rules, workers: Workers) -> None:
        self._app, self._rules, self._workers = app, rules, workers
        self._held_bytes = 0
        """Of the bodies of all requests that are here, or that a thread works for."""
        self._freed_bytes = 0
        """Of those that have gone since memory was given back."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._check(scope, Headers(scope=scope))
        if problem is not None:
            await _drain(receive, self._rules.max_body_bytes)
            await _refuse(problem, scope, receive, send)
            return
        parts, n_bytes, n_made_bytes = list[bytes](), 0, 0
        loop = asyncio.get_running_loop()

        def let_go() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._let_go, n_bytes)

        holders = Holders(let_go)
        try:
            await self._read(receive, parts)
            body = b"".join(parts)
            parts[:] = [body]
            scope[PARSED], n_made_bytes = await self._parse(body)
            self._held_bytes += n_made_bytes
            self._check_held(has_more=False)
            await self._app(scope, _after(body, receive), send)
        except _Refused as refused:
            if refused.has_more:
                await _drain(receive, self._rules.max_body_bytes)
            await _refuse(refused.problem, scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            n_bytes, body = sum(map(len, parts)) + n_made_bytes, b""
            parts.clear()
            holders.leave()

    async def _parse(self, body: bytes) -> tuple[Any, int]:
        """Once, for all who read it; large ones by a thread. Raises as ``_parse``."""
        if not body:
            return None, 0
        if len(body) < _SLOW_BYTES:
            return _parse(body)
        try:
            return await self._workers.run(lambda _: _parse(body))
        except BusyError as error:
            raise _Refused(problem_of(error)) from error

    def _let_go(self, n_bytes: int) -> None:
        """A body is not held any more; after large ones, and when there is no other, memory is given back."""
        self._held_bytes -= n_bytes
        self._freed_bytes += n_bytes
        if self._freed_bytes >= _LARGE_BYTES > self._held_bytes:
            self._freed_bytes = 0
            give_back_freed()

    async def _read(self, receive: Receive, parts: list[bytes]) -> None:
        """Adds the body's parts, which count as held from then on.

        Raises:
            _Refused: it is too large, or takes too long.
            ClientDisconnect: the caller has gone.
        """
        n_bytes, has_more = 0, True
        try:
            async with asyncio.timeout(self._rules.body_s):
                while has_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    parts.append(message.get("body", b""))
                    n_bytes += len(parts[-1])
                    self._held_bytes += len(parts[-1])
                    has_more = message.get("more_body", False)
                    self._check_size(n_bytes, has_more=has_more)
        except TimeoutError as error:
            why = f"the request's body was not there within {self._rules.body_s:.0f} s: send it faster"
            raise _Refused(Problem(408, why, code="timeout")) from error

    def _check(self, scope: Scope, headers: Headers) -> Problem | None:
        rules, method = self._rules, scope["method"]
        if not rules.keys and not self._is_own_name(_host_name(headers.get("host", ""))):
            return Problem(403, f"the host {headers.get('host', '')!r} is not this server: it answers to {rules.host}")
        origin = headers.get("origin")
        if origin is not None and not self._may_ask(origin, headers.get("host", "")):
            return Problem(403, f"pages of {origin!r} may not ask this server: whoever runs it can let them")
        if rules.keys and scope["path"] not in _OPEN_PATHS:
            found = (find_key(rules.keys, shown) for shown in _shown_keys(headers))
            key = next(filter(None, found), None)
            if key is None:
                return Problem(401, "this server wants an API key: Authorization: Bearer KEY", code="invalid_api_key")
            scope[KEY_NAME] = key.name
        if method == "POST" and ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
            kind = headers.get("content-type", "").split(";")[0].strip().lower()
            if kind != "application/json":
                return Problem(415, f"the content type is {kind!r}, it must be application/json")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > rules.max_body_bytes:
            return self._too_much()
        return None

    def _too_much(self) -> Problem:
        return Problem(413, f"the request is larger than {self._rules.max_body_bytes:,} bytes: make it shorter")

    def _is_own_name(self, name: str) -> bool:
        return name in LOCAL_NAMES or name == self._rules.host

    def _may_ask(self, origin: str, host: str) -> bool:
        allowed = self._rules.cors_origins
        with contextlib.suppress(ValueError):
            return "*" in allowed or origin in allowed or urlsplit(origin).netloc == host
        return False

    def _check_size(self, n_bytes: int, *, has_more: bool) -> None:
        if n_bytes > self._rules.max_body_bytes:
            raise _Refused(self._too_much(), has_more=has_more)
        self._check_held(has_more=has_more)

    def _check_held(self, *, has_more: bool) -> None:
        if self._held_bytes > self._rules.max_bodies_bytes:
            message = f"requests of more than {self._rules.max_bodies_bytes:,} bytes are here already: try again later"
            problem = Problem(503, message, "server_error", headers={"Retry-After": str(RETRY_AFTER_S)})
            raise _Refused(problem, has_more=has_more)


def _shown_keys(headers: Headers) -> Iterator[str]:
    """By either name; a client that has a key of somebody else's in one may have ours in the other."""
    yield headers.get("x-api-key", "")
    scheme, _, shown = headers.get("authorization", "").partition(" ")
    yield shown.strip() if scheme.lower() == "bearer" else ""


def _parse(body: bytes) -> tuple[Any, int]:
    """What a body says, and about how many bytes that takes; no number is infinite, no character half.

    Raises:
        _Refused: it is no JSON, or too much of it.
    """
    try:
        body.decode()
        n_bytes = _count_values(body)
        return msgspec.json.decode(body), n_bytes
    except UnicodeDecodeError as error:
        raise _Refused(Problem(400, f"the request is not UTF-8 at byte {error.start:,}")) from error
    except RecursionError as error:
        raise _Refused(Problem(400, "the request is nested too deeply: make it flatter")) from error
    except msgspec.DecodeError as error:
        raise _Refused(Problem(400, f"the request is not JSON: {error}")) from error


def _count_values(body: bytes) -> int:
    """About how many bytes they take.

    Raises:
        _Refused: there are too many.
    """
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') <= 2 * (_MAX_VALUES + _MAX_NAMES):
        plain = b"".join(plain.split(b'"')[::2])  # what is no text
    n_values, n_names = plain.count(b","), plain.count(b":") + plain.count(b"[") + plain.count(b"{")
    if n_values >= _MAX_VALUES:
        raise _Refused(Problem(400, f"the request has more than {_MAX_VALUES:,} values: make it smaller"))
    if n_names > _MAX_NAMES:
        what = f"the request has more than {_MAX_NAMES:,} names, lists and objects: make it smaller"
        raise _Refused(Problem(400, what))
    return n_values * _VALUE_BYTES + n_names * _NAME_BYTES


def _after(body: bytes, receive: Receive) -> Receive:
    """The body as a whole, and then whatever comes."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def give() -> Message:
        nonlocal message
        given, message = message, None
        return given or await receive()

    return give


async def _drain(receive: Receive, max_body_bytes: int) -> None:
    """Reads what a caller sends who is refused, within bounds: most look at the answer only when they have sent all."""
    n_bytes, has_more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAINED_S):
            while has_more and n_bytes < _DRAINED_PARTS * max_body_bytes:
                message = await receive()
                n_bytes += len(message.get("body", b""))
                has_more = message.get("more_body", False)


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    body = problem.body_at(scope["path"])
    await JSONResponse(body, problem.status, problem.headers | {"Connection": "close"})(scope, receive, send)


def _host_name(host: str) -> str:
    """Without port, in lower case, an IPv6 address without brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""
