"""The server: a port, and a thread with a loop that answers requests. Owns both."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tpi.api.bounds import TOO_MANY, BoundedProtocol, Bounds, Connection, Connections
from tpi.errors import UsageError

_BACKLOG = 128
_PAUSE_S = 0.1
"""Until another is accepted after too many files were open."""
_FAREWELL_S = 2.0
"""How long the end of TLS may take."""
_LAST_WORDS_S = 2
"""How long answers on their way may take at the end."""
_MAX_HEADER_BYTES = 32 << 10


class ApiServer:
    """``close`` is idempotent."""

    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    def __init__(self, host: str, port: int, ollama_port: int | None = None) -> None:
        """Listens from now on, at a second port as well where tools look for Ollama; ``start`` begins to answer. Port 0
        takes any.

        Raises:
            UsageError: the address cannot be listened at.
        """
        self._sockets = [_listen(host, port, "choose another, or go without")]
        self.port: int = self._sockets[0].getsockname()[1]
        self.ollama_port: int | None = None
        if ollama_port is not None:
            try:
                self._sockets.append(_listen(host, ollama_port, "choose another for it, or end what is there"))
            except UsageError:
                self.close()
                raise
            self.ollama_port = self._sockets[1].getsockname()[1]

    def start(self, app: ASGIApp, tls: ssl.SSLContext | None = None, bounds: Bounds | None = None) -> None:
        """Answers requests with ``app``, over TLS if there is a context of it."""
        bounds = bounds or Bounds()
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",  # what callers send is no business of the log
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(bounds.idle_s) + 1,
            timeout_graceful_shutdown=_LAST_WORDS_S,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        server = self._server = _Server(config, bounds, tls)
        for listening in self._sockets:
            listening.setblocking(False)
            listening.listen(_BACKLOG)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(self._sockets)), name="tpi-api", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        for listening in self._sockets:
            listening.close()


class _Server(uvicorn.Server):
    """Accepts connections one by one, so that they count from the beginning."""

    def __init__(self, config: uvicorn.Config, bounds: Bounds, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls, self._connections = tls, Connections(bounds)
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []
        for listening in sockets or []:
            self._do(self._accept(listening))
        self._do(self._connections.watch())
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().shutdown(sockets)

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                caller, address = await loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(_PAUSE_S)
                continue
            connection = self._connections.try_open(caller, str(address[0]))
            if connection is None:
                with contextlib.suppress(OSError), caller:
                    if self._tls is None:
                        caller.send(TOO_MANY)
                continue
            connection.handshake = self._do(self._connect(connection))

    async def _connect(self, connection: Connection) -> None:
        caller = connection.begin()
        make_protocol = partial(
            BoundedProtocol, connection, config=self.config, server_state=self.server_state, app_state={}
        )
        limits: dict[str, Any] = {}
        if self._tls is not None:
            limits = {
                "ssl": self._tls,
                "ssl_handshake_timeout": self._connections.bounds.handshake_s,
                "ssl_shutdown_timeout": _FAREWELL_S,
            }
        try:
            with contextlib.suppress(OSError):
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(make_protocol, caller, **limits)
        except OSError:  # a handshake that failed is one of these
            connection.left()
        except asyncio.CancelledError:
            connection.left()
            raise


def _listen(host: str, port: int, remedy: str) -> socket.socket:
    """Bound, not listening yet.

    Raises:
        UsageError: that cannot be.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"the API cannot listen at {host!r}: {error.strerror or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(f"the API cannot listen at {host} port {port} ({error.strerror}): {remedy}") from error
    return bound
