"""A trace that cannot go on, or that a worker tells nonsense for, stops no session."""

import errno
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tpi.cluster.control.messages import ClockReply, TraceReply
from tpi.cluster.membership.member import Answer
from tpi.cluster.mesh.frames import Phase
from tpi.cluster.tracing import tracing as tracing_module
from tpi.cluster.tracing.tracing import Tracing, _fetch
from tpi.trace import EVENT, Events, Kind, Trace, unpack_events


class Worker:
    """Stands for a member: tells ``events`` again and again."""

    def __init__(self, events: bytes, at_s: float = 1.0) -> None:
        self.rank, self.name, self._events, self._at_s, self.n_asked = 1, "pi", events, at_s, 0

    def ask(self, question: type) -> str:
        self.n_asked += 1
        return question.__name__

    def wait_answer(self, kind: str, timeout_s: float) -> Answer:
        if kind == "ClockRequest":
            return Answer(ClockReply(1, self._at_s), 1.0)
        return Answer(TraceReply(1, self._events, 0), 1.0)


def events_of(**changes: Any) -> Events:
    trace = Trace()
    trace.add(Kind.RECEIVE, 1.0, 2.0, peer=0, phase=Phase.PARTIAL)
    events = unpack_events(trace.take(1)[0]).copy()
    for field, value in changes.items():
        events[field] = value
    return events


@pytest.mark.parametrize(
    ("changes", "n_kept"),
    [
        ({}, 1),
        ({"kind": Kind.READ, "phase": 0, "peer": -1}, 1),
        ({"kind": 77}, 0),
        ({"phase": 0}, 0),
        ({"part": 2}, 0),
        ({"peer": 2}, 0),
        ({"peer": -1}, 0),
        ({"begin": np.nan}, 0),
        ({"end": np.inf}, 0),
    ],
)
def test_events_that_cannot_be_are_not_kept(
    changes: dict[str, Any], n_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "_MOST_EVENTS", 1)
    events = events_of(**changes)
    worker = Worker(np.concatenate([events, events_of()]).tobytes())
    kept, n_dropped = _fetch(cast(Any, worker), 2)
    assert len(kept) == n_kept + 1 and n_dropped == 1 - n_kept


def test_a_worker_that_tells_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_module, "_MOST_EVENTS", 10)
    for nonsense in ({}, {"kind": 77}):
        worker = Worker(events_of(**nonsense).tobytes())
        _fetch(cast(Any, worker), 2)
        assert worker.n_asked == 10
    assert EVENT.itemsize == 40


@pytest.mark.parametrize("at_s", [float("nan"), float("inf")])
def test_a_clock_that_is_none_is_not_known(tmp_path: Path, at_s: float) -> None:
    with Tracing(tmp_path / "trace.json", "desk") as tracing:
        tracing.read_clocks([cast(Any, Worker(b"", at_s))])
        assert tracing._clocks == {} and tracing.failure is None


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    path, worker = tmp_path / "trace.json", Worker(b"")
    tracing = Tracing(path, "desk")
    tracing.on_failure = told.append
    file = tracing._file._file
    assert file is not None

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tracing._file, "_write", fail)
    for _ in range(2):
        tracing.read_clocks([cast(Any, worker)])
        tracing.collect(cast(Any, None), [cast(Any, worker)])
    said = f"the trace {path} ends here (No space left on device), the rest of the session is not traced"
    assert told == [said] and tracing.failure == said
    tracing.close()
    tracing.close()
    assert file.closed and json.loads(path.read_bytes())


def test_a_defect_ends_the_trace_and_nothing_else(tmp_path: Path) -> None:
    told: list[str] = []
    with Tracing(tmp_path / "trace.json", "desk") as tracing:
        tracing.on_failure = told.append
        tracing.own.add(Kind.SUM, 1.0, 2.0, part=77)
        tracing.collect(cast(Any, None), [])
    assert len(told) == 1 and "is not traced" in told[0]
