"""What this rank did when: slices of time, kept until somebody takes them. Any thread adds, one takes.

Times are those of the machine's monotonic clock in seconds (``time.monotonic``, ``time.perf_counter``,
CLOCK_MONOTONIC). Nothing is recorded unless somebody wants it: whoever could add has None instead of a trace then.
"""

import enum
import struct
import threading

import numpy as np
import numpy.typing as npt

MAX_EVENTS = 100_000
"""Kept until they are taken; what comes then is only counted."""

NO_PEER = -1

EVENT = np.dtype(
    [
        ("begin", "<f8"),
        ("end", "<f8"),
        ("kind", "u1"),
        ("part", "u1"),
        ("peer", "<i2"),
        ("block", "<i4"),
        ("pass_id", "<i8"),
        ("n_bytes", "<u4"),
        ("phase", "<u4"),
    ]
)
"""One slice of time, 40 bytes; the C helper writes such, too."""

Events = npt.NDArray[np.void]

_EVENT = struct.Struct("<ddBBhiqII")


class Kind(enum.IntEnum):
    """What was done."""

    COMPUTE = 0
    DISK = 1
    """The pass waited for a piece of weights."""
    WAIT = 2
    """The pass waited for a sum."""
    SUM = 3
    """A sum, from its start until it was finished."""
    READ = 4
    """A piece was read from disk."""
    SEND = 5
    """A frame was handed to the system, from its first byte to its last."""
    RECEIVE = 6
    """A frame's payload came, from when its header was read."""
    PASS = 7
    """A whole pass on this rank."""
    SHARE = 8
    """The master told the others about a pass."""
    GATHER = 9
    """The master waited for the others' logits."""


class Trace:
    """A bounded queue of slices."""

    def __init__(self, capacity: int = MAX_EVENTS) -> None:
        self._capacity_bytes = capacity * EVENT.itemsize
        self._mutex = threading.Lock()
        self._events = bytearray()
        self._n_dropped = 0

    def add(
        self,
        kind: Kind,
        begin_s: float,
        end_s: float,
        pass_id: int = 0,
        block: int = -1,
        part: int = 0,
        peer: int = NO_PEER,
        n_bytes: int = 0,
        phase: int = 0,
    ) -> None:
        """Something that lasted from ``begin_s`` to ``end_s``."""
        event = _EVENT.pack(begin_s, end_s, kind, part, peer, block, pass_id, n_bytes, phase)
        with self._mutex:
            if len(self._events) < self._capacity_bytes:
                self._events += event
            else:
                self._n_dropped += 1

    def add_all(self, events: Events, n_dropped: int = 0) -> None:
        """Many at once; ``n_dropped`` more found no room where they come from."""
        with self._mutex:
            room = max(self._capacity_bytes - len(self._events), 0) // EVENT.itemsize
            self._events += events[:room].tobytes()
            self._n_dropped += n_dropped + max(len(events) - room, 0)

    def take(self, n_most: int) -> tuple[bytes, int]:
        """The oldest ``n_most`` events, which leave the queue, and how many were not kept since the last time."""
        with self._mutex:
            taken = bytes(self._events[: n_most * EVENT.itemsize])
            del self._events[: len(taken)]
            n_dropped, self._n_dropped = self._n_dropped, 0
            return taken, n_dropped


def unpack_events(data: bytes) -> Events:
    """What ``Trace.take`` gave.

    Raises:
        ValueError: it is nothing of the kind.
    """
    return np.frombuffer(data, EVENT)
