"""The application: all routes, behind the guard, and what becomes of errors."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpi.api.accesslog import AccessLog, Logged
from tpi.api.anthropic import routes as anthropic
from tpi.api.errors import Problem, problem_of
from tpi.api.guards import Guard, Rules
from tpi.api.llamacpp import routes as llamacpp
from tpi.api.ollama import routes as ollama
from tpi.api.openai import routes as openai
from tpi.api.service import Service
from tpi.api.state import EVENTS_PATH, make_state_router
from tpi.errors import TpiError
from tpi.version import VERSION

_CLIENT_CLOSED_REQUEST = 499
_MAX_PLACE_CHARS = 200
_DEFECT = Problem(500, "a defect of the server ended the request: its log says more", "server_error")
_log = logging.getLogger(__name__)


def make_app(service: Service, rules: Rules, log: AccessLog | None = None) -> ASGIApp:
    """Ready to be served; requests are written to ``log``."""
    app = FastAPI(title="tpi", version=VERSION, docs_url=None, redoc_url=None)
    for make_router in (openai.make_router, ollama.make_router, anthropic.make_router, llamacpp.make_router):
        app.include_router(make_router(service))
    app.add_api_route("/health", _tell_health(service), methods=["GET"])
    app.include_router(make_state_router(service))
    app.add_exception_handler(Problem, _tell_problem)
    app.add_exception_handler(TpiError, _tell_error)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(ClientDisconnect, _tell_nobody)
    app.add_exception_handler(RecursionError, _tell_too_deep)
    app.add_exception_handler(Exception, _tell_defect)
    served: ASGIApp = Guard(_answer_heads(app), rules, service.workers)
    if rules.cors_origins:
        served = CORSMiddleware(
            served, allow_origins=list(rules.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    served = _tell_defects(served)
    return Logged(served, log) if log is not None else served


def _tell_health(service: Service) -> Callable[[], Awaitable[dict[str, str]]]:
    async def health() -> dict[str, str]:
        failure = service.failure
        if failure is not None:
            raise Problem(503, str(failure), "server_error", "cluster_unavailable")
        return {"status": "ok"}

    return health


def _answer_heads(app: ASGIApp) -> ASGIApp:
    """Whoever asks for a head gets what GET gives, of which the server sends the head; but of a stream, which has no
    end."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["method"] == "HEAD" and scope["path"] != EVENTS_PATH
        await app({**scope, "method": "GET"} if is_head else scope, receive, send)

    return answer


def _tell_defects(app: ASGIApp) -> ASGIApp:
    """What nobody has foreseen, before the application has a say, is logged, and told without details."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(scope, receive, watch)
        except Exception:
            if has_begun:
                raise
            _log.exception("a defect ended a request: %s %s", scope["method"], scope["path"][:_MAX_PLACE_CHARS])
            await JSONResponse(_DEFECT.body_at(scope["path"]), _DEFECT.status)(scope, receive, send)

    return answer


async def _tell_problem(request: Request, problem: Any) -> Response:
    return JSONResponse(problem.body_at(request.url.path), problem.status, problem.headers)


async def _tell_error(request: Request, error: Any) -> Response:
    return await _tell_problem(request, problem_of(error))


async def _tell_invalid(request: Request, error: Any) -> Response:
    """What is wrong first, where it is, and what it should be. Where a value may have several forms, all of them have
    something to say: heard is the one that ends it, or the one that got furthest."""
    errors = error.errors()
    at_first = (other for other in errors if other["loc"][:2] == errors[0]["loc"][:2])
    found = max(at_first, key=lambda other: (other["type"] == "too_long", _numbers(other["loc"])))
    place = _place(found["loc"], error.body, is_missing=found["type"] == "missing")[:_MAX_PLACE_CHARS] or None
    if found["type"] == "json_invalid":
        message = f"the request is not JSON: {found.get('ctx', {}).get('error', found['msg'])}"
    else:
        message = f"{place or 'the request'}: {found['msg'].replace(' after validation', '')}"
    return await _tell_problem(request, Problem(400, message, param=place))


def _numbers(place: Sequence[int | str]) -> list[int]:
    """Of the items of lists that it lies in."""
    return [part for part in place if isinstance(part, int)]


def _place(place: Sequence[int | str], body: Any, *, is_missing: bool) -> str:
    """As a caller would name it: what is no name or number in the ``body`` tells a form that a value may have."""
    source, *parts = place
    if source != "body":
        return ".".join(map(str, parts))
    found, here = list[str](), body
    for number, part in enumerate(parts):
        if isinstance(here, dict) and (part in here or (is_missing and number == len(parts) - 1)):
            found.append(str(part))
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            found.append(str(part))
            here = here[part]
    return ".".join(found)


async def _tell_http(request: Request, error: Any) -> Response:
    headers = dict(error.headers or {})
    asked = f"there is no {request.method} {request.url.path[:_MAX_PLACE_CHARS]} here"
    match error.status_code:
        case 404:
            problem = Problem(404, asked, code="not_found")
        case 405:
            problem = Problem(405, f"{asked}, but {headers.get('Allow', 'others')}", headers=headers)
        case status:
            problem = Problem(status, str(error.detail), headers=headers)
    return await _tell_problem(request, problem)


async def _tell_too_deep(request: Request, _: Any) -> Response:
    return await _tell_problem(request, Problem(400, "the request is nested too deeply: make it flatter"))


async def _tell_defect(request: Request, _: Any) -> Response:
    """The server logs it."""
    return await _tell_problem(request, _DEFECT)


async def _tell_nobody(_: Request, error: Any) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
