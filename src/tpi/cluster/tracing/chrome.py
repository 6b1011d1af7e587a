"""Writes slices of time in the Chrome trace format, for https://ui.perfetto.dev and chrome://tracing. Plain files.

The JSON array form: a file that was not closed, because the program was killed, can be opened as well. A device is a
process there, and what it does at the same time are threads: passes; sums; reads from disk; frames to and from each
peer. An arrow leads from each frame's sending to its coming.
"""

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import msgspec
import numpy as np

from tpi.cluster.mesh.frames import Phase
from tpi.errors import UsageError
from tpi.trace import Events, Kind

_TO, _FROM = 1000, 2000
_READS, _N_READ_LANES = 10, 8
_THREADS = {1: "passes", 2: "sums", 3: "sums, second half"}
_PASS_KINDS = (Kind.PASS, Kind.COMPUTE, Kind.DISK, Kind.WAIT, Kind.SHARE, Kind.GATHER)
_NAMES = {Kind.PASS: "pass", Kind.SHARE: "tell the others", Kind.GATHER: "wait for logits"}


class _Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the array; ``ts`` and ``dur`` in microseconds."""

    ph: str
    pid: int
    tid: int = 0
    name: str = ""
    ts: float | None = None
    dur: float | None = None
    cat: str = ""
    id: int | None = None
    bp: str = ""
    args: dict[str, str | int | float] = {}


class Labels(Protocol):
    """Names of blocks and pieces."""

    def block(self, index: int) -> str: ...

    def piece(self, rank: int, index: int) -> str: ...


class TraceFile:
    """A file that is being written. A context manager; ``close`` is idempotent."""

    def __init__(self, path: Path) -> None:
        """Compressed if the name ends with ``.gz``.

        Raises:
            UsageError: it cannot be written.
        """
        self._encoder = msgspec.json.Encoder()
        self._is_first = True
        self._n_arrows = 0
        self._known_threads: set[tuple[int, int]] = set()
        try:
            is_compressed = path.suffix == ".gz"
            opened = gzip.GzipFile(path, "wb", compresslevel=3) if is_compressed else path.open("wb")
            self._file: BinaryIO | None = cast(BinaryIO, opened)
            self._file.write(b"[\n")
        except OSError as error:
            raise UsageError(f"the trace {path} cannot be written ({error.strerror})") from error

    def __enter__(self) -> "TraceFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the array."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                file.write(b"\n]\n")

    def name_device(self, rank: int, name: str) -> None:
        """What the device is called."""
        self._write(_Event("M", rank, name="process_name", args={"name": f"rank {rank}: {name}"}))
        self._write(_Event("M", rank, name="process_sort_index", args={"sort_index": rank}))

    def note(self, rank: int, at_s: float, text: str, **figures: float) -> None:
        """Something about the trace itself, as a mark."""
        self._write(_Event("i", rank, 1, text, at_s * 1e6, args=dict(figures)))

    def add(self, by_rank: dict[int, Events], labels: Labels) -> None:
        """Events of all ranks, on one clock; what was sent and what came of the same pass are in one call."""
        for rank, events in by_rank.items():
            for event, lane in zip(events, _lanes(events), strict=True):
                self._add(rank, event, lane, labels)
        self._add_arrows(by_rank)
        if self._file is not None:
            self._file.flush()

    def _add(self, rank: int, event: np.void, lane: int, labels: Labels) -> None:
        kind, block = Kind(int(event["kind"])), int(event["block"])
        args: dict[str, str | int | float] = {}
        if kind in (Kind.SEND, Kind.RECEIVE):
            peer = int(event["peer"])
            thread, text = (_TO + peer, f"to rank {peer}") if kind is Kind.SEND else (_FROM + peer, f"from rank {peer}")
            name = f"{Phase(int(event['phase'])).name.lower()} {labels.block(block)}".strip()
            args = {"bytes": int(event["n_bytes"]), "part": int(event["part"])}
        elif kind is Kind.READ:
            thread, text = _READS + lane, "disk"
            name = labels.piece(rank, block)
            args = {"bytes": int(event["n_bytes"])}
        elif kind is Kind.SUM:
            thread = 2 + int(event["part"])
            text, name = _THREADS[thread], f"sum {labels.block(block)}"
        else:
            thread, text = 1, _THREADS[1]
            verb = {Kind.DISK: "wait for disk: ", Kind.WAIT: "wait for sum: "}.get(kind, "")
            name = _NAMES.get(kind) or f"{verb}{labels.block(block)}"
        if kind is not Kind.READ:
            args["pass"] = int(event["pass_id"])
        self._name_thread(rank, thread, text)
        begin, duration = float(event["begin"]) * 1e6, float(event["end"] - event["begin"]) * 1e6
        self._write(_Event("X", rank, thread, name, begin, max(duration, 0.0), kind.name.lower(), args=args))

    def _add_arrows(self, by_rank: dict[int, Events]) -> None:
        """From each frame's end of sending to its end of coming: frames of equal keys come in the order of sending."""
        seen: Counter[tuple[int, ...]] = Counter()
        sent = {}
        for rank, peer, event in _frames(by_rank, Kind.SEND):
            key = (rank, peer, *_key(event))
            sent[*key, seen[key]] = event
            seen[key] += 1
        seen.clear()
        for rank, peer, event in _frames(by_rank, Kind.RECEIVE):
            key = (peer, rank, *_key(event))
            begun = sent.get((*key, seen[key]))
            seen[key] += 1
            if begun is not None:
                self._n_arrows += 1
                place = {"name": "frame", "cat": "frame", "id": self._n_arrows}
                left, came = float(begun["begin"]) * 1e6, float(event["end"]) * 1e6
                self._write(_Event("s", peer, _TO + rank, ts=left, **place))  # type: ignore[arg-type]
                self._write(_Event("f", rank, _FROM + peer, ts=came, bp="e", **place))  # type: ignore[arg-type]

    def _name_thread(self, rank: int, thread: int, text: str) -> None:
        if (rank, thread) not in self._known_threads:
            self._known_threads.add((rank, thread))
            self._write(_Event("M", rank, thread, "thread_name", args={"name": text}))
            self._write(_Event("M", rank, thread, "thread_sort_index", args={"sort_index": thread}))

    def _write(self, event: _Event) -> None:
        if self._file is None:
            return
        line = self._encoder.encode(event)
        self._file.write(line if self._is_first else b",\n" + line)
        self._is_first = False


def _lanes(events: Events) -> Sequence[int]:
    """For reads, which overlap, the first lane that is free; 0 for everything else."""
    free_s = [-np.inf] * _N_READ_LANES
    lanes = [0] * len(events)
    reads = np.flatnonzero(events["kind"] == Kind.READ)
    for place in reads[np.argsort(events["begin"][reads], kind="stable")]:
        lane = next((lane for lane, free in enumerate(free_s) if free <= events["begin"][place]), _N_READ_LANES - 1)
        free_s[lane], lanes[place] = events["end"][place], lane
    return lanes


def _frames(by_rank: dict[int, Events], kind: Kind) -> Iterable[tuple[int, int, np.void]]:
    for rank, events in by_rank.items():
        for event in events[events["kind"] == kind]:
            yield rank, int(event["peer"]), event


def _key(event: np.void) -> tuple[int, ...]:
    return tuple(int(event[field]) for field in ("pass_id", "block", "phase", "part"))
