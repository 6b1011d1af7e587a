"""Who may ask, and how much at once: everything that is decided before a request is read. An ASGI application around
another.

Browsers send requests for any page that they show: a page of somebody else's may neither be answered (Origin) nor
pretend that this server is its own (Host, against DNS rebinding).
"""

import asyncio
import contextlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpi.api.errors import Problem

MAX_BODY_BYTES = 8 << 20
_DRAINED_PARTS, _DRAINED_S = 8, 2.0
_OPEN_PATHS = ("/health",)
LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
"""By these only this device reaches a server."""


@dataclass(frozen=True)
class Rules:
    """``host`` is the address that is listened at; ``keys``, if any, are what callers must show one of;
    ``cors_origins`` are pages that may ask, ``*`` all."""

    host: str
    keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    max_body_bytes: int = MAX_BODY_BYTES


class _TooMuch(Exception):
    pass


class Guard:
    """Lets requests through that keep the rules."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._check(scope["method"], scope["path"], headers)
        if problem is not None:
            await _drain(receive, self._rules.max_body_bytes)
            await _refuse(problem, scope, receive, send)
            return
        n_bytes, has_begun = 0, False

        async def count() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._rules.max_body_bytes:
                raise _TooMuch
            return message

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, count, watch)
        except _TooMuch:
            if has_begun:
                raise
            await _drain(receive, self._rules.max_body_bytes)
            await _refuse(self._too_much(), scope, receive, send)

    def _check(self, method: str, path: str, headers: Headers) -> Problem | None:
        rules = self._rules
        if not rules.keys and not self._is_own_name(_host_name(headers.get("host", ""))):
            return Problem(403, f"the host {headers.get('host', '')!r} is not this server: it answers to {rules.host}")
        origin = headers.get("origin")
        if origin is not None and not self._may_ask(origin, headers.get("host", "")):
            return Problem(403, f"pages of {origin!r} may not ask this server: start it with --cors {origin}")
        if rules.keys and path not in _OPEN_PATHS and method != "OPTIONS" and not self._has_key(headers):
            return Problem(401, "this server wants an API key: Authorization: Bearer KEY", code="invalid_api_key")
        if method == "POST":
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
        return "*" in allowed or origin in allowed or urlsplit(origin).netloc == host

    def _has_key(self, headers: Headers) -> bool:
        shown = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        # Every key is compared, in a time that does not tell how much of it was right.
        matches = [hmac.compare_digest(shown.encode(), key.encode()) for key in self._rules.keys]
        return any(matches)


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
