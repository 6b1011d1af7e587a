"""Reads pieces from disk with direct I/O, several reads in flight; buffered where the file system refuses that.

A :class:`PieceReader` owns its descriptors and threads; memory to read into is lent by the caller until a read is over.
Buffered reads drop what they read from the page cache, which would otherwise fill with weights that come around once a
pass only.
"""

import errno
import mmap
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import msgspec

from tpi.errors import Cancelled, MemoryBudgetError, ModelFileError
from tpi.weights.files import PAGE_BYTES, cannot_read, ends_early, forget_cached, open_for_reading, read_some, round_up
from tpi.weights.stored import StoredPiece, StoredWeights

_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


class ReadWay(msgspec.Struct, frozen=True):
    """How a disk is read: bytes per read call, reads in flight; and the rate if it was measured, 0 if not."""

    chunk_bytes: int = 4 << 20
    n_readers: int = 2
    bytes_per_s: float = 0.0


@dataclass
class PendingRead:
    """A read that has been started. :meth:`cancel` leaves out what has not begun yet; ``on_done`` still comes."""

    on_done: Callable[[Exception | None], None]
    n_left: int = 0
    error: Exception | None = None
    is_cancelled: bool = field(default=False)

    def cancel(self) -> None:
        """Any thread."""
        self.is_cancelled = True


@dataclass(frozen=True)
class _Chunk:
    pending: PendingRead
    file: int
    offset: int
    needed: int
    out: memoryview


class PieceReader:
    """Reads pieces of ``stored`` in the way that ``way`` says. ``direct=False`` forces buffered reads.

    Raises:
        ModelFileError: a file cannot be opened or is shorter than its pieces.
        MemoryBudgetError: the system does not give the memory for its threads.
    """

    def __init__(self, stored: StoredWeights, way: ReadWay | None = None, *, direct: bool = True) -> None:
        self.way = way or ReadWay()
        self._paths = stored.paths
        self._descriptors: list[int] = []
        self._direct: list[int] = []
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._threads: list[threading.Thread] = []
        self.is_direct = direct and hasattr(os, "O_DIRECT")
        """Whether reads go past the page cache; False if any of the files' systems refuses."""
        try:
            self._open()
            self._check_sizes(stored)
            self._start_threads()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self, piece: StoredPiece, out: memoryview, on_done: Callable[[Exception | None], None]) -> PendingRead:
        """Starts to read ``piece`` into ``out``, ``piece.arena_bytes`` of page-aligned memory; returns at once.

        ``on_done`` is called once, on a reader thread, when nothing refers to ``out`` any more: with None if all was
        read, a ``ModelFileError`` that names file and place, or ``Cancelled``.
        """
        chunks, chunk_bytes = [], self.way.chunk_bytes
        pending = PendingRead(on_done)
        for extent in piece.extents:
            for done in range(0, extent.n_bytes, chunk_bytes):
                needed = min(chunk_bytes, extent.n_bytes - done)
                at = extent.arena_offset + done
                memory = out[at : at + round_up(needed)]
                chunks.append(_Chunk(pending, extent.file, extent.file_offset + done, needed, memory))
        pending.n_left = len(chunks)
        for chunk in chunks:
            self._chunks.put(chunk)
        return pending

    def read(self, piece: StoredPiece, out: memoryview) -> None:
        """Reads ``piece`` into ``out`` as :meth:`start` does, and blocks until it is there.

        Raises:
            ModelFileError: see :meth:`start`.
        """
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.start(piece, out, done.put)
        error = done.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """Ends the threads after the chunks that they are reading, then closes the files; may be called again.

        Reads that have been started get their ``on_done``.
        """
        self._is_closed = True
        for _ in self._threads:
            self._chunks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for descriptors in (self._descriptors, self._direct):
            while descriptors:
                os.close(descriptors.pop())

    def _open(self) -> None:
        for path in self._paths:
            self._descriptors.append(open_for_reading(path))
        try:
            for path in self._paths if self.is_direct else ():
                self._direct.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
                with mmap.mmap(-1, PAGE_BYTES) as page:
                    os.preadv(self._direct[-1], [page], PAGE_BYTES)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
            self.is_direct = False

    def _check_sizes(self, stored: StoredWeights) -> None:
        sizes = [os.fstat(descriptor).st_size for descriptor in self._descriptors]
        for piece in stored.pieces:
            for extent in piece.extents:
                end = extent.file_offset + extent.n_bytes
                if end > sizes[extent.file]:
                    raise ends_early(self._paths[extent.file], self._descriptors[extent.file], end)

    def _start_threads(self) -> None:
        for number in range(self.way.n_readers):
            thread = threading.Thread(target=self._work, name=f"tpi-disk-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # all that Python says of a refused stack
                raise MemoryBudgetError(
                    f"no room for {self.way.n_readers} threads that read the disk ({error}): "
                    "use less memory, or end other programs"
                ) from error
            self._threads.append(thread)

    def _work(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            pending = chunk.pending
            error: Exception | None = None
            if self._is_closed or pending.is_cancelled:
                error = Cancelled("the read was stopped")
            else:
                try:
                    self._read(chunk)
                except Exception as failure:  # reaches the caller through on_done
                    error = failure
            chunk.out.release()  # not even an error's traceback may refer to the memory when on_done comes
            with self._lock:
                pending.n_left -= 1
                if pending.error is None or isinstance(pending.error, Cancelled):
                    pending.error = error or pending.error
                is_last = pending.n_left == 0
            if is_last:
                pending.on_done(pending.error)

    def _read(self, chunk: _Chunk) -> None:
        path, done, is_cached = self._paths[chunk.file], 0, False
        while done < chunk.needed:
            # A direct read can only begin at a page; what follows a short one goes through the page cache.
            is_direct = self.is_direct and done % PAGE_BYTES == 0
            descriptor = (self._direct if is_direct else self._descriptors)[chunk.file]
            is_cached |= not is_direct
            try:
                with chunk.out[done:] as rest:
                    n_read = read_some(descriptor, chunk.offset + done, rest)
            except OSError as error:
                raise cannot_read(path, chunk.offset + done, error) from error
            if n_read == 0:
                raise ends_early(path, descriptor, chunk.offset + chunk.needed)
            done += n_read
        if is_cached:
            forget_cached(self._descriptors[chunk.file], chunk.offset, done)
