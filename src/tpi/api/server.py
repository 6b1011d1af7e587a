"""The server: a port, and a thread with a loop that answers requests. Owns both."""

import asyncio
import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from tpi.errors import UsageError

_MOST_CONNECTIONS = 2048
_IDLE_S = 30
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
        self._sockets = [_listen(host, port, "choose another --api-port, or leave it out with --no-api")]
        self.port: int = self._sockets[0].getsockname()[1]
        self.ollama_port: int | None = None
        if ollama_port is not None:
            try:
                self._sockets.append(_listen(host, ollama_port, "choose another --ollama-port, or end what is there"))
            except UsageError:
                self.close()
                raise
            self.ollama_port = self._sockets[1].getsockname()[1]

    def start(self, app: ASGIApp) -> None:
        """Answers requests with ``app``."""
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_LAST_WORDS_S,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        server = self._server = uvicorn.Server(config)
        for listening in self._sockets:
            listening.listen(config.backlog)
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


def _listen(host: str, port: int, remedy: str) -> socket.socket:
    """Bound, not listening yet.

    Raises:
        UsageError: that cannot be.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(f"the API cannot listen at {host} port {port} ({error.strerror}): {remedy}") from error
    return bound
