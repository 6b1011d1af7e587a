"""A master's session: port, workers, engine, status socket, and their end in the right order. Main thread.

``run`` and ``serve`` differ in who the workers are: processes that this one starts, or devices that people bring.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TypeAlias

import msgspec

from tpi.cli.display import Display
from tpi.cli.environment import child_variables, find_status_folder
from tpi.cli.keyfolder import open_key_folder
from tpi.cli.localdevices import LocalDevices
from tpi.cli.models import open_model
from tpi.cli.statussocket import StatusServer
from tpi.cli.talk import Manner, Running, Talk
from tpi.cluster.cluster import Cluster
from tpi.cluster.master import Master
from tpi.cluster.reports import ClusterStatus, Event, Report, Waiting
from tpi.config import Folders, MasterSettings
from tpi.engine.embedder import vectors_bytes
from tpi.engine.engine import Engine
from tpi.engine.grammar import memory_bytes
from tpi.engine.language import Language
from tpi.errors import LinkError, TpiError, UsageError

_LOCAL_WAIT_S = 120.0
_API_BYTES = 20_000_000
"""What a process grows by while it answers an API, with 16 callers at once (``python -m bench growth``)."""

OpenApi: TypeAlias = Callable[[Engine, Cluster], AbstractContextManager[Running]]
"""Gives what the terminal sees of the cluster, which it shares with other callers then."""


@contextlib.contextmanager
def open_local(settings: MasterSettings, manner: Manner, display: Display) -> Iterator[Talk]:
    """A cluster of this process and ``settings.n_workers`` children of it, with keys of its own that end with it.

    Raises:
        TpiError: whatever goes wrong, a child's last words included.
    """
    with ExitStack() as stack:
        state = stack.enter_context(open_key_folder())
        settings = dataclasses.replace(
            settings,
            folders=Folders(state / "master", settings.folders.shards, settings.folders.cache),
            bind="127.0.0.1",
            port=0,
            wait_s=_LOCAL_WAIT_S,
        )
        open_model(settings.model, settings.folders.cache)
        master = stack.enter_context(Master(settings))
        devices = stack.enter_context(
            LocalDevices(settings.n_workers, master.join_key, settings.resources, state, child_variables())
        )

        def report(event: Event) -> None:
            display.report(event)
            if isinstance(event, Waiting):
                devices.start_more(event.n_joined)

        def check() -> None:
            devices.check()
            _tell_notes(master, display)

        try:
            yield stack.enter_context(_form(settings, master, manner, display, report, check))
        except LinkError as error:
            raise devices.explain() or error from error


@contextlib.contextmanager
def open_served(
    settings: MasterSettings,
    manner: Manner,
    display: Display,
    announce: Callable[[Master], None],
    open_api: OpenApi | None = None,
) -> Iterator[Talk]:
    """A cluster of this process and the devices that join it; ``announce`` tells people how. ``open_api`` is what to
    open beside the terminal once the cluster stands.

    Raises:
        TpiError: whatever goes wrong.
    """
    open_model(settings.model, settings.folders.cache)
    with Master(settings) as master:
        announce(master)

        def check() -> None:
            _tell_notes(master, display)

        with _form(settings, master, manner, display, display.report, check, open_api) as talk:
            yield talk


def _tell_notes(master: Master, display: Display) -> None:
    """Who was turned away, who is late."""
    for line in master.membership.notes.take_new():
        display.note(line)


@contextlib.contextmanager
def _form(
    settings: MasterSettings,
    master: Master,
    manner: Manner,
    display: Display,
    report: Report,
    check: Callable[[], None],
    open_api: OpenApi | None = None,
) -> Iterator[Talk]:
    """Forms the cluster and answers ``tpi status`` from now on."""
    source = _Source()
    with ExitStack() as stack:
        try:
            stack.enter_context(StatusServer(find_status_folder(), source, note=master.membership.notes.add))
        except TpiError as error:
            display.note(f"tpi: {error}; going on without")
        language = stack.enter_context(Language(settings.model))
        try:
            cluster = stack.enter_context(master.form(report, check, _beside_bytes(language, manner, open_api)))
        finally:
            display.settle()
        speaker = stack.enter_context(Engine(cluster, language, pins=settings.pins))
        if settings.pins:
            _pin(speaker, manner.system)
        source.status = lambda: msgspec.structs.replace(cluster.status(), answers=speaker.figures())
        running: Running = cluster
        if open_api is not None:
            running = stack.enter_context(open_api(speaker, cluster))
        yield Talk(speaker, running, manner, display, notes=lambda: _tell_notes(master, display))


def _pin(speaker: Engine, system: str) -> None:
    try:
        speaker.pin(system)
    except UsageError as error:
        raise UsageError(f"--pin: {error}") from error


def _beside_bytes(language: Language, manner: Manner, open_api: OpenApi | None) -> int:
    """What this process will need beside its rank: for an API, and for grammars and vectors of tokens where somebody
    can ask for them."""
    has_grammars = open_api is not None or manner.grammar is not None or manner.thinking.budget_tokens is not None
    n_bytes = memory_bytes(language.vocabulary.n_tokens) if has_grammars else 0
    return n_bytes + (_API_BYTES + vectors_bytes(language.gguf) if open_api is not None else 0)


class _Source:
    """Where the status socket's thread gets the state from; set once the cluster is there."""

    def __init__(self) -> None:
        self.status: Callable[[], ClusterStatus] | None = None

    def __call__(self) -> ClusterStatus:
        if self.status is None:
            raise LinkError("the cluster is still starting: its devices join or fetch their slices")
        return self.status()
