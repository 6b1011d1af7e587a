"""Answers on their way to callers: all of a response at once, or as a stream of events that grows."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tpi.api.connection import while_connected
from tpi.api.service import Answering, Service, merged, replies
from tpi.engine.reading import ChatDelta, Reply
from tpi.errors import TpiError

Body: TypeAlias = dict[str, Any]
Tell: TypeAlias = Callable[[int, ChatDelta | Reply], Iterable[bytes]]
"""What is sent when an answer grows, or has ended."""


async def whole(request: Request, answerings: Sequence[Answering]) -> list[Reply]:
    """The replies, when all are complete. Raises as ``while_connected``."""
    return await while_connected(request, replies(answerings))


def stream(
    answerings: Sequence[Answering],
    tell: Tell,
    tell_error: Callable[[TpiError], Iterable[bytes]],
    *,
    opening: Iterable[bytes] = (),
    closing: Callable[[Sequence[Reply]], Iterable[bytes]] = lambda replies: (),
    media_type: str = "text/event-stream",
) -> StreamingResponse:
    """The answers as they grow. When the caller hangs up, the stream is closed, and what it waits for with it."""

    async def parts() -> AsyncIterator[bytes]:
        try:
            for part in opening:
                yield part
            async for index, item in merged(answerings):
                if part := b"".join(tell(index, item)):
                    yield part
            yield b"".join(closing([answering.reply for answering in answerings]))
        except TpiError as error:
            yield b"".join(tell_error(error))
        finally:
            for answering in answerings:
                answering.cancel()

    return StreamingResponse(parts(), media_type=media_type, headers={"Cache-Control": "no-cache"})


async def large(service: Service, make: Callable[[], Any]) -> Response:
    """A response with what ``make`` gives, as JSON; both are made by a thread that has no other work. Parts that are
    long by themselves should be ``raw`` already. Raises what ``make`` does."""
    return Response(await service.work(lambda: msgspec.json.encode(make())), media_type="application/json")


def raw(value: Any) -> msgspec.Raw:
    """A part of a body, as JSON already: however many there are, each holds up other threads for a moment only."""
    return msgspec.Raw(msgspec.json.encode(value))


def event(body: Body, name: str = "") -> bytes:
    """A server-sent event, with a name of its own if it has one."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + line(body) + b"\n"


def typed_event(body: Body) -> bytes:
    """One that is named as its body says."""
    return event(body, body["type"])


def line(body: Body) -> bytes:
    """JSON on a line of its own."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
