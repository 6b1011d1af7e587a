"""The API beside the terminal: its options, and its way from the engine to a port. Loaded by ``serve`` only where it is
wanted."""

import contextlib
import queue
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi.api.accesslog import AccessLog
from tpi.api.app import make_app
from tpi.api.guards import LOCAL_NAMES, Rules
from tpi.api.keys import Key, number_keys, read_keys
from tpi.api.server import ApiServer
from tpi.api.service import Identity, Service
from tpi.api.tls import read_certificate
from tpi.cli.display import Display
from tpi.cli.secretfile import keep_from_log
from tpi.cluster.cluster import Cluster
from tpi.cluster.reports import ClusterStatus
from tpi.engine.engine import Engine
from tpi.engine.settings import SamplingSettings
from tpi.engine.slots import Slots

STANDARD_ERROR = Path("-")
"""Where access is logged in place of a file."""


@dataclass(frozen=True)
class ApiOptions:
    """Where to listen, who may ask, and under which name the model goes. ``access_log`` is a file, ``-`` for standard
    error, None for neither; ``certificate`` and its key are files, too. A key that is made is kept in ``state``;
    slots are saved in ``slot_folder``, if there is one."""

    host: str
    port: int
    state: Path
    model: str
    keys: tuple[Key, ...] = ()
    cors_origins: tuple[str, ...] = ()
    takes_any_name: bool = False
    ollama_port: int | None = None
    access_log: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    slot_folder: Path | None = None


def gather_keys(secrets: Sequence[str], file: Path | None) -> tuple[Key, ...]:
    """Those of the command line, and those of a file.

    Raises:
        UsageError: see ``read_keys``.
    """
    return number_keys(secrets) + (read_keys(file) if file is not None else ())


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
        UsageError: the address cannot be listened at, or a file not used.
        """
        self._tls = None
        if options.certificate is not None:
            self._tls = read_certificate(options.certificate, options.certificate_key)
        self._server = ApiServer(options.host, options.port, options.ollama_port)
        self._log: AccessLog | None = None
        if options.access_log is not None:
            self._log = AccessLog(None if options.access_log == STANDARD_ERROR else options.access_log)
        keys = options.keys
        if not keys and options.host not in LOCAL_NAMES:
            keys = (Key("made", secrets.token_urlsafe(24)),)
            file = keep_from_log("api-key", keys[0].secret, options.state)
            where = f"this key: {keys[0].secret}" if file is None else f"the key in {file}, until this ends"
            display.note(f"the API is open to other devices, with {where}")
        self._options, self._sampling, self._display = options, sampling, display
        self._rules = Rules(options.host, keys, options.cors_origins)
        self._failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def close(self) -> None:
        """Idempotent."""
        self._server.close()
        if self._log is not None:
            self._log.close()

    @contextlib.contextmanager
    def open(self, engine: Engine, cluster: Cluster) -> Iterator[SharedCluster]:
        identity = Identity(self._options.model, int(time.time()), self._options.takes_any_name)
        slots = Slots(engine.scheduler, cluster, self._options.slot_folder, cluster.spec.digest, engine.n_sequences)
        service = Service(engine, identity, self._sampling, cluster.status, slots)
        engine.drive(self._failures.put)
        self._server.start(make_app(service, self._rules, self._log), self._tls)
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        scheme = "http" if self._tls is None else "https"
        self._display.note(f"the API is at {scheme}://{host}:{self._server.port}/v1")
        if self._server.ollama_port is not None:
            self._display.note(f"Ollama's is at {scheme}://{host}:{self._server.ollama_port}, too")
        try:
            yield SharedCluster(cluster)
        finally:
            self._server.close()
            service.close()

    def wait(self) -> None:
        """Serves until a signal comes.

        Raises:
            TpiError: no answer can be given any more.
        """
        raise self._failures.get()
