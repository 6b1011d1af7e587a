"""A line for every request: when, who, what, how it ended, how long it took, how many tokens. Never what was said.

The server's loop hands lines over; a thread writes them, so that no caller waits for a disk or a full pipe.
"""

import contextlib
import contextvars
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpi.engine.generation import Answer
from tpi.errors import UsageError

KEY_NAME = "tpi.key"
"""In a request's scope: the name of the key that was shown."""
_DEFECT = 500
_MAX_LINES = 4096
_MAX_PATH = 200


class Answered(Protocol):
    """An answer that a request has begun."""

    @property
    def answer(self) -> Answer: ...


@dataclass(frozen=True)
class Counted:
    """One of which nothing else is wanted any more."""

    answer: Answer


_begun: contextvars.ContextVar[list[Answered] | None] = contextvars.ContextVar("begun", default=None)


def note_answers(begun: Sequence[Answered]) -> None:
    """The request that runs has begun these."""
    noted = _begun.get()
    if noted is not None:
        noted.extend(begun)


class AccessLog:
    """Where lines go: a file, or standard error. A context manager; ``close`` is idempotent and writes what waits."""

    def __init__(self, path: Path | None) -> None:
        """``path`` None: standard error. The file is opened anew for lines that come together, so that it may be moved.

        Raises:
            UsageError: it cannot be written.
        """
        self._path, self._n_lost, self._is_closed = path, 0, False
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_LINES)
        self._write("")
        self._thread = threading.Thread(target=self._run, name="tpi-access-log", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(queue.Full):  # then the thread has enough to wake for
            self._lines.put_nowait(None)
        self._thread.join()

    def add(self, line: str) -> None:
        """Does not wait; what comes faster than it can be written is counted and lost."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._n_lost += 1

    def _run(self) -> None:
        while not self._is_closed or not self._lines.empty():
            lines = [self._lines.get()]
            while not self._lines.empty():
                lines.append(self._lines.get())
            if n_lost := self._n_lost:
                self._n_lost -= n_lost
                lines.append(f"{n_lost} lines were lost: they came too fast")
            try:
                self._write("".join(f"{line}\n" for line in lines if line is not None))
            except UsageError:
                self._n_lost += len(lines)

    def _write(self, text: str) -> None:
        try:
            if self._path is None:
                print(text, end="", file=sys.stderr, flush=True)
                return
            with self._path.open("a") as file:
                file.write(text)
        except OSError as error:
            where = self._path or "at standard error"
            raise UsageError(f"the access log {where} cannot be written: {error.strerror or error}") from error


class Logged:
    """An application whose requests are written down."""

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s, status, begun = time.perf_counter(), 0, list[Answered]()
        _begun.set(begun)

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = status or _DEFECT
            raise
        finally:
            answers = [answered.answer for answered in begun]
            self._log.add(_line(scope, status, time.perf_counter() - started_s, answers))


def _line(scope: Scope, status: int, took_s: float, answers: Sequence[Answer]) -> str:
    """Status 0: the caller went away before he got one."""
    client = scope.get("client") or ("-",)
    path = quote(scope["path"], safe="/:@,;=+!$&'()*~")[:_MAX_PATH]
    line = (
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {client[0]} key={scope.get(KEY_NAME, '-')} {scope['method']} {path} "
        f"{status} {took_s * 1000:.0f}ms"
    )
    if answers:
        n_prompt, n_answer = (sum(n) for n in zip(*((a.n_prompt_tokens, a.n_tokens) for a in answers), strict=True))
        line += f" prompt={n_prompt} answer={n_answer}"
    return line
