"""The master's side of a trace: asks the workers for their clocks and what they noted, and writes it on its own clock.

Owns the file and the master's own trace. The thread that runs passes collects; the membership's watching thread reads
clocks in between. One lock. Whatever goes wrong ends the trace, never the session.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tpi.cluster.control.messages import ClockReply, ClockRequest, Plan, TraceReply, TraceRequest
from tpi.cluster.epoch.planning import with_rank
from tpi.cluster.epoch.rankplan import rank_model
from tpi.cluster.membership.member import Member
from tpi.cluster.mesh.frames import Phase
from tpi.cluster.tracing.chrome import TraceFile
from tpi.cluster.tracing.clocks import Clock, Reading, read
from tpi.errors import LinkError
from tpi.trace import EVENT, MAX_EVENTS, Events, Kind, Trace, unpack_events

_TIMEOUT_S = 5.0
_CLOCK_TIMEOUT_S = 1.0
_BURST = 5
_ALL = 1 << 30
_MOST_EVENTS = 2 * MAX_EVENTS
"""Of one worker at once: one that notes faster than it is asked has no end."""


class Tracing:
    """A context manager; ``close`` is idempotent."""

    def __init__(self, path: Path, name: str) -> None:
        """``name`` is the master's.

        Raises:
            UsageError: the file cannot be written.
        """
        self.own = Trace()
        self._path = path
        self._file = TraceFile(path)
        self._file.name_device(0, name)
        self._clocks: dict[str, Clock] = {}
        self._mutex = threading.Lock()
        self.failure: str | None = None
        """Why nothing more is traced, once that is so."""
        self.on_failure: Callable[[str], None] = lambda line: None
        """Told the failure, once; from the thread in which it occurs."""

    def __enter__(self) -> "Tracing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the file."""
        with self._unless_failed(), self._mutex:
            self._file.close()

    def read_clocks(self, members: Sequence[Member]) -> None:
        """Asks for everybody's clock; who does not answer is left out. Blocks for a moment."""
        if self.failure is not None:
            return
        for member in members:
            with self._unless_failed(), self._mutex:  # two threads' readings stay in order
                if readings := _read_clock(member):
                    if member.name not in self._clocks:
                        self._clocks[member.name] = Clock()
                        self._file.name_device(member.rank, member.name)
                    self._clocks[member.name].add(readings)

    def collect(self, plan: Plan, members: Sequence[Member]) -> None:
        """Writes what all ranks noted since the last time. Between passes."""
        self.read_clocks(members)
        if self.failure is None:
            with self._unless_failed():
                self._collect(plan, members)

    @contextmanager
    def _unless_failed(self) -> Iterator[None]:
        """Ends the trace at whatever is raised, a defect of this program included."""
        try:
            yield
        except Exception as error:
            if self.failure is None:
                reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                self.failure = f"the trace {self._path} ends here ({reason}), the rest of the session is not traced"
                self.on_failure(self.failure)

    def _collect(self, plan: Plan, members: Sequence[Member]) -> None:
        events, n_dropped = self.own.take(_ALL)
        by_rank, dropped = {0: unpack_events(events)}, {0: n_dropped}
        for member in members:
            by_rank[member.rank], dropped[member.rank] = _fetch(member, len(members) + 1)
        with self._mutex:
            for member in members:
                self._align(member, by_rank)
            self._file.add(by_rank, _Labels(plan))
            for rank, n_dropped in dropped.items():
                if n_dropped:
                    self._file.note(rank, time.monotonic(), f"{n_dropped} slices were not kept")

    def _align(self, member: Member, by_rank: dict[int, Events]) -> None:
        """Moves a worker's events to the master's clock; without its clock they are left out."""
        clock, events = self._clocks.get(member.name), by_rank[member.rank]
        if clock is None or not clock.is_known:
            by_rank[member.rank] = events[:0]
            return
        moved = events.copy()
        for field in ("begin", "end"):
            moved[field] = clock.to_here(events[field])
        by_rank[member.rank] = moved
        error_ms = clock.error_s() * 1e3
        clock.forget()
        self._file.note(member.rank, time.monotonic(), f"clock within {error_ms:.3f} ms", error_ms=error_ms)


def _read_clock(member: Member) -> list[Reading]:
    readings = []
    for _ in range(_BURST):
        asked_s = time.monotonic()
        try:
            answer = member.wait_answer(member.ask(ClockRequest), _CLOCK_TIMEOUT_S)
        except LinkError:
            break
        if answer is None or not isinstance(answer.message, ClockReply) or not math.isfinite(answer.message.at_s):
            break
        readings.append(read(asked_s, answer.message.at_s, answer.at_s))
    return readings


def _fetch(member: Member, n_ranks: int) -> tuple[Events, int]:
    """All that the worker has noted, as far as it answers and up to ``_MOST_EVENTS``, and how many were not kept."""
    parts, n_told, n_dropped = [np.empty(0, EVENT)], 0, 0
    while n_told < _MOST_EVENTS:
        try:
            answer = member.wait_answer(member.ask(TraceRequest), _TIMEOUT_S)
            if answer is None or not isinstance(answer.message, TraceReply) or not answer.message.events:
                break
            events = unpack_events(answer.message.events)
            parts.append(events[_can_be(events, n_ranks)])
            n_told += len(events)
            n_dropped += len(events) - len(parts[-1])
        except (LinkError, ValueError):
            break
        n_dropped += answer.message.n_dropped
    return np.concatenate(parts), n_dropped


def _can_be(events: Events, n_ranks: int) -> npt.NDArray[np.bool_]:
    """Which of a worker's events are what a trace may have."""
    frames = np.isin(events["kind"], (Kind.SEND, Kind.RECEIVE))
    are_frames = np.isin(events["phase"], list(Phase)) & (events["peer"] >= 0) & (events["peer"] < n_ranks)
    are_times = np.isfinite(events["begin"]) & np.isfinite(events["end"])
    can_be = np.isin(events["kind"], list(Kind)) & (events["part"] <= 1) & are_times & (~frames | are_frames)
    return np.asarray(can_be, np.bool_)


class _Labels:
    """Satisfies ``chrome.Labels``."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._blocks = rank_model(plan).blocks
        self._pieces = lru_cache(lambda rank: rank_model(with_rank(plan, rank)).pieces)

    def block(self, index: int) -> str:
        return self._blocks[index].title if 0 <= index < len(self._blocks) else ""

    def piece(self, rank: int, index: int) -> str:
        pieces = self._pieces(rank)
        return f"read {self.block(pieces[index].block)}" if 0 <= index < len(pieces) else "read"
