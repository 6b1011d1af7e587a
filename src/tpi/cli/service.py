"""The API beside the terminal: its options, and its way from the engine to a port. Loaded by ``serve`` only where it is
wanted."""

import contextlib
import queue
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tpi.api.app import make_app
from tpi.api.guards import LOCAL_NAMES, Rules
from tpi.api.server import ApiServer
from tpi.api.service import Identity, Service
from tpi.cli.display import Display
from tpi.cluster.cluster import Cluster
from tpi.cluster.reports import ClusterStatus
from tpi.engine.engine import Engine
from tpi.engine.settings import SamplingSettings


@dataclass(frozen=True)
class ApiOptions:
    """Where to listen, who may ask, and under which name the model goes."""

    host: str
    port: int
    model: str
    keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    takes_any_name: bool = False
    ollama_port: int | None = None


class SharedCluster:
    """What the terminal sees of a cluster that others ask, too: nothing that it does may end their passes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def status(self) -> ClusterStatus:
        return self._cluster.status()

    def cancel(self) -> None:
        pass

    def save_trace(self) -> None:
        pass


class Api:
    """Listens from the beginning, so that a port that is taken is noticed at once; answers as long as ``open`` is."""

    def __init__(self, options: ApiOptions, sampling: SamplingSettings, display: Display) -> None:
        """Raises:
        UsageError: the address cannot be listened at.
        """
        self._server = ApiServer(options.host, options.port, options.ollama_port)
        keys = options.keys
        if not keys and options.host not in LOCAL_NAMES:
            keys = (secrets.token_urlsafe(24),)
            display.note(f"the API is open to other devices, with this key: {keys[0]}")
        self._options, self._sampling, self._display = options, sampling, display
        self._rules = Rules(options.host, keys, options.cors_origins)
        self._failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def close(self) -> None:
        """Idempotent."""
        self._server.close()

    @contextlib.contextmanager
    def open(self, engine: Engine, cluster: Cluster) -> Iterator[SharedCluster]:
        identity = Identity(self._options.model, int(time.time()), self._options.takes_any_name)
        service = Service(engine, identity, self._sampling, cluster.status)
        engine.drive(self._failures.put)
        self._server.start(make_app(service, self._rules))
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        self._display.note(f"the API is at http://{host}:{self._server.port}/v1")
        if self._server.ollama_port is not None:
            self._display.note(f"Ollama's is at http://{host}:{self._server.ollama_port}, too")
        try:
            yield SharedCluster(cluster)
        finally:
            self._server.close()

    def wait(self) -> None:
        """Serves until a signal comes.

        Raises:
            TpiError: no answer can be given any more.
        """
        raise self._failures.get()
