"""The file that a trace becomes: JSON that tools open, complete or not, with an arrow for every frame."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tpi.cluster.mesh.frames import Phase
from tpi.cluster.tracing.chrome import TraceFile
from tpi.errors import UsageError
from tpi.trace import EVENT, Events, Kind, Trace, unpack_events


class Labels:
    def block(self, index: int) -> str:
        return "" if index < 0 else f"ffn {index}"

    def piece(self, rank: int, index: int) -> str:
        return f"read {index}"


def events_of(*added: dict[str, Any]) -> Events:
    trace = Trace()
    for entry in added:
        trace.add(**entry)
    return unpack_events(trace.take(1000)[0])


def frame(kind: Kind, peer: int, begin: float, block: int = 3, pass_id: int = 7) -> dict[str, Any]:
    end = begin + 0.25
    return {
        "kind": kind, "begin_s": begin, "end_s": end, "pass_id": pass_id, "block": block, "peer": peer,
        "n_bytes": 96, "phase": Phase.PARTIAL,
    }  # fmt: skip


def write(path: Path) -> list[dict[str, Any]]:
    with TraceFile(path) as file:
        file.name_device(0, "desk")
        ours = events_of(
            {"kind": Kind.COMPUTE, "begin_s": 1.0, "end_s": 1.5, "pass_id": 7, "block": 3},
            {"kind": Kind.READ, "begin_s": 1.0, "end_s": 1.4, "block": 5, "n_bytes": 4096},
            {"kind": Kind.READ, "begin_s": 1.1, "end_s": 1.3, "block": 6, "n_bytes": 4096},
            frame(Kind.SEND, 1, 2.0),
            frame(Kind.SEND, 1, 2.5),
            {"kind": Kind.SUM, "begin_s": 1.5, "end_s": 3.0, "pass_id": 7, "block": 3, "part": 1},
        )
        theirs = events_of(frame(Kind.RECEIVE, 0, 2.1), frame(Kind.RECEIVE, 0, 2.9), frame(Kind.RECEIVE, 0, 9.0, 4))
        file.add({0: ours, 1: theirs}, Labels())
        file.note(1, 4.0, "clock within 0.1 ms", error_ms=0.1)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events = json.loads(data)
    assert isinstance(events, list)
    return events


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_slices_threads_and_arrows(tmp_path: Path, name: str) -> None:
    events = write(tmp_path / name)
    slices = {(event["pid"], event["name"]): event for event in events if event["ph"] == "X"}
    computed = slices[0, "ffn 3"]
    assert (computed["ts"], computed["dur"], computed["cat"], computed["args"]) == (1e6, 5e5, "compute", {"pass": 7})
    assert slices[0, "sum ffn 3"]["tid"] == 3
    assert slices[0, "read 5"]["tid"] != slices[0, "read 6"]["tid"], "reads that overlap lie one below the other"
    begun = [event for event in events if event["ph"] == "s"]
    ended = [event for event in events if event["ph"] == "f"]
    assert [(event["id"], event["pid"], event["ts"]) for event in begun] == [(1, 0, 2.0e6), (2, 0, 2.5e6)]
    assert [(event["id"], event["pid"]) for event in ended] == [(1, 1), (2, 1)]
    assert [event["ts"] for event in ended] == pytest.approx([2.35e6, 3.15e6])
    threads = {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    named = {(event["pid"], event["tid"]) for event in events if event.get("name") == "thread_name"}
    assert threads == named
    assert [event["args"] for event in events if event["ph"] == "i"] == [{"error_ms": 0.1}]


def test_a_file_that_was_not_closed_can_be_read(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "trace.json")
    file.add({0: events_of(frame(Kind.SEND, 1, 2.0))}, Labels())
    assert len(json.loads((tmp_path / "trace.json").read_text() + "]")) == 3
    file.close()
    file.close()
    assert len(json.loads((tmp_path / "trace.json").read_text())) == 3


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "trace.json", tmp_path / "none" / "trace.gz"):
        with pytest.raises(UsageError, match=r"the trace .*none.* cannot be written"):
            TraceFile(path)


def test_a_full_trace_counts_what_it_does_not_keep() -> None:
    trace = Trace(capacity=3)
    for number in range(5):
        trace.add(Kind.COMPUTE, number, number + 1, block=number)
    many = events_of(frame(Kind.SEND, 1, 2.0), frame(Kind.SEND, 1, 3.0))
    trace.add_all(many, n_dropped=4)
    taken, n_dropped = trace.take(2)
    assert unpack_events(taken)["block"].tolist() == [0, 1] and n_dropped == 2 + 4 + 2
    trace.add_all(many)
    taken, n_dropped = trace.take(1000)
    assert unpack_events(taken)["block"].tolist() == [2, 3, 3] and n_dropped == 0
    assert EVENT.itemsize == 40
