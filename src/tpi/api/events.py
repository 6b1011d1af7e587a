"""The cluster's state as a stream of server-sent events, for as many as listen. Runs on the server's loop, and only
while somebody listens."""

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec

from tpi.api.errors import Problem, problem_of
from tpi.api.service import Service
from tpi.errors import TpiError

MAX_LISTENERS = 32
_log = logging.getLogger(__name__)
_LOOK_S = 0.1
"""How soon others are told that answers begin or end."""
_REGULAR_S = 1.0
_KEPT = 4
"""Events that wait for a listener; each tells the whole state, so the oldest are dropped."""


class Events:
    """``state`` whenever the number of answers changes, and regularly; ``error`` when there is none to tell."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._latest = b""

    def listen(self) -> AsyncIterator[bytes]:
        """What one listener gets, without end.

        Raises:
            Problem: too many listen already.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise Problem(429, f"{MAX_LISTENERS} listen already, no more may: try again later", "rate_limit_error")
        queue: asyncio.Queue[bytes] = asyncio.Queue(_KEPT)
        self._listeners.add(queue)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        elif self._latest:
            queue.put_nowait(self._latest)
        return self._follow(queue)

    async def _follow(self, queue: "asyncio.Queue[bytes]") -> AsyncIterator[bytes]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def _watch(self) -> None:
        loop, seen, told_s = asyncio.get_running_loop(), None, 0.0
        while self._listeners:
            load = self._service.load()
            if (changed := (load.n_running, load.n_waiting)) != seen or loop.time() - told_s >= _REGULAR_S:
                seen, told_s = changed, loop.time()
                self._tell(await self._state())
            await asyncio.sleep(_LOOK_S)
        self._latest = b""

    async def _state(self) -> bytes:
        try:
            return b"event: state\ndata: " + msgspec.json.encode(await self._service.status()) + b"\n\n"
        except TpiError as error:
            return _failed(problem_of(error))
        except Exception:  # those who listen would wait for ever
            _log.exception("a defect: the cluster's state cannot be told")
            return _failed(Problem(500, "a defect of the server: its log says more", "server_error"))

    def _tell(self, event: bytes) -> None:
        self._latest = event
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)


def _failed(problem: Problem) -> bytes:
    return b"event: error\ndata: " + msgspec.json.encode(problem.body) + b"\n\n"
