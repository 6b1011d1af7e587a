"""What tests of pieces on demand share: weights with experts, and a reader whose reads end when the test says so."""

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.unit.weights.streaming.test_window import store
from tpi.errors import Cancelled
from tpi.weights.stored import StoredPiece, StoredWeights
from tpi.weights.streaming.disk import PendingRead, PieceReader
from tpi.weights.streaming.window import Window

WAIT_S = 20.0


def store_experts(
    path: Path, sizes: Sequence[int], on_demand: Collection[int], seed: int = 0
) -> tuple[StoredWeights, list[bytes]]:
    """Pieces of random bytes of ``sizes`` pages, some of them on demand."""
    stored, contents = store(path, list(sizes), seed)
    pieces = (dataclasses.replace(piece, is_on_demand=piece.index in on_demand) for piece in stored.pieces)
    return StoredWeights(stored.paths, tuple(pieces)), contents


class ManualReader(PieceReader):
    """Reads a piece when :meth:`finish` says so."""

    def __init__(self, stored: StoredWeights) -> None:
        super().__init__(stored)
        self._data = stored.paths[0].read_bytes()
        self.started: list[int] = []
        """Indexes, in order, of all that were started."""
        self._under_way: dict[int, tuple[StoredPiece, memoryview, PendingRead]] = {}

    @property
    def under_way(self) -> list[int]:
        return list(self._under_way)

    def start(self, piece: StoredPiece, out: memoryview, on_done: Callable[[Exception | None], None]) -> PendingRead:
        assert piece.index not in self._under_way, "is being read"
        pending = PendingRead(on_done)
        self.started.append(piece.index)
        self._under_way[piece.index] = piece, out, pending
        return pending

    def finish(self, *indexes: int, error: Exception | None = None) -> None:
        """Ends the reads of these pieces, which must be under way; those that were cancelled have read nothing."""
        for index in indexes:
            piece, out, pending = self._under_way.pop(index)
            if pending.is_cancelled:
                error = Cancelled("stopped")
            elif error is None:
                start = piece.extents[0].file_offset
                out[:] = self._data[start : start + len(out)]
            out.release()
            pending.on_done(error)

    def finish_all(self) -> None:
        """Ends all reads, and those that begin because of that."""
        while self._under_way:
            self.finish(*self.under_way)

    def cancelled(self) -> list[int]:
        """Indexes of reads that are to stop."""
        return [index for index, (_, _, pending) in self._under_way.items() if pending.is_cancelled]


class Holder:
    """Holds a piece in a thread of its own until :meth:`leave`."""

    def __init__(self, window: Window, index: int, hints: Sequence[int] = ()) -> None:
        self._window, self._index, self._hints = window, index, hints
        self._is_held, self._may_leave = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._window.hold(self._index, self._hints):
                self._is_held.set()
                assert self._may_leave.wait(WAIT_S)
        except Exception as error:
            self.error = error

    def wait_held(self) -> None:
        assert self._is_held.wait(WAIT_S)

    def leave(self) -> Exception | None:
        """Ends the hold; returns what it raised."""
        self._may_leave.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.error


@contextmanager
def manual(stored: StoredWeights, budget_bytes: int) -> Iterator[tuple[Window, ManualReader]]:
    """A window whose reads end by hand; when it is closed, by themselves."""
    reader = ManualReader(stored)
    window = Window(stored, reader, budget_bytes)
    try:
        yield window, reader
    finally:
        closer = threading.Thread(target=window.close)
        closer.start()
        until(lambda: window._is_closed)
        while closer.is_alive():
            reader.finish_all()
            closer.join(0.001)


def until(is_true: Callable[[], bool]) -> None:
    """Waits until something has happened in another thread."""
    deadline_s = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
