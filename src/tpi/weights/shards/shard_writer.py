"""Writes a shard file beside its final name and takes up again what an earlier writer left. Holds no piece.

While it is written a shard is ``NAME.part``, with ``NAME.journal`` beside it: the sha256 of what comes before the data,
with zeros for sums, then for every finished piece its sums and their crc32. A writer for the same header goes on behind
the finished pieces whose bytes on disk still have these sums: they are read again, because after a power cut the
journal may be on disk without the data, and reading is much faster than fetching. One thread; a lock on the journal
keeps other processes away: who has it may write, rename and remove the shard and what belongs to it.
"""

import errno
import hashlib
import os
import sys
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tpi.errors import DiskSpaceError, ModelFileError, TpiError
from tpi.weights.files import forget_cached, round_up
from tpi.weights.layout import Piece
from tpi.weights.shards.filelock import LOCK_LIMIT_S, LOCK_POLL_S, is_at, try_lock
from tpi.weights.shards.shard import Shard, damaged_runs, open_shard
from tpi.weights.shards.shard_format import (
    SUM_BYTES,
    ShardHeader,
    encode_start,
    layout_of,
    n_sum_bytes,
    sum_runs,
)

PART_SUFFIX, JOURNAL_SUFFIX = ".part", ".journal"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SYNC_BYTES = 64_000_000
"""Written bytes are flushed and forgotten this often, so that they do not crowd out the page cache."""


class ShardWriter:
    """Writes the shard described by ``header`` to ``path``, piece after piece in order; ``layout`` is what follows from
    it.

    A context manager: leaving it before :meth:`finish` keeps what is written for the next writer, except after a
    ``DiskSpaceError``, which removes it. The final name appears complete or not at all.

    Raises:
        DiskSpaceError: the file system has too little room.
        ModelFileError: the file cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, header: ShardHeader) -> None:
        self.path = path
        self.n_finished = 0
        """Pieces that are written; at first those that an earlier writer left."""
        self._header, self.layout = header, layout_of(header)
        self._sums: list[bytes] = []
        self._unsynced = 0
        start = encode_start(header, bytes(self.layout.n_sum_bytes))
        self._data_start = len(start)
        self._identity = hashlib.sha256(start).digest()
        self._part, self._journal = (path.with_name(path.name + end) for end in (PART_SUFFIX, JOURNAL_SUFFIX))
        self._files: list[BinaryIO] = []
        try:
            self._open()
        except BaseException as error:
            self._leave(error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave(error)

    def write(self, data: memoryview) -> None:
        """Writes the next piece, whose bytes are all of ``data``; the memory stays the caller's. Blocks."""
        piece = self.layout.pieces[self.n_finished]
        assert len(data) == piece.n_bytes, f"piece {piece.index} has {piece.n_bytes} bytes"
        sums = sum_runs(data)
        try:
            self._write_at(self._data_start + self.layout.offsets[piece.index], data)
            self._files[1].write(sums + zlib.crc32(sums).to_bytes(SUM_BYTES, "little"))
            self._unsynced += len(data)
            if self._unsynced >= _SYNC_BYTES:
                self._sync()
        except OSError as error:
            raise self._error(error) from error
        self._sums.append(sums)
        self.n_finished += 1

    def finish(self) -> Shard:
        """Gives the complete shard its name and opens it."""
        assert len(self._sums) == len(self.layout.pieces), "pieces are missing"
        try:
            self._files[0].truncate(self._data_start + self.layout.data_bytes)
            self._write_at(0, memoryview(encode_start(self._header, b"".join(self._sums))))
            self._sync()
            self._files[0].close()
            self._part.replace(self.path)
            shard = open_shard(self.path)
            self._remove(self._journal)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._error(error) from error
        return shard

    def close(self) -> None:
        """Closes the files and keeps them; may be called again."""
        while self._files:
            self._files.pop().close()

    def _leave(self, error: BaseException | None) -> None:
        if isinstance(error, DiskSpaceError) and self._files:
            self._remove(self._part, self._journal)
        self.close()

    def _remove(self, *paths: Path) -> None:
        """While they are locked, and at last closes them."""
        if sys.platform == "win32":  # open files cannot be removed there
            self.close()
        for path in paths:
            path.unlink(missing_ok=True)
        self.close()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._files = [self._open_locked()]
            self._files.insert(0, _open_file(self._part))
            self._resume()
            self._check_space()
        except OSError as error:
            raise self._error(error) from error

    def _open_locked(self) -> BinaryIO:
        deadline_s = time.monotonic() + LOCK_LIMIT_S
        while True:
            journal = _open_file(self._journal)
            if try_lock(journal.fileno()) and is_at(journal.fileno(), self._journal):
                return journal
            journal.close()
            if time.monotonic() > deadline_s:
                raise ModelFileError(f"another process is writing {self._part}: wait for it, or use another folder")
            time.sleep(LOCK_POLL_S)

    def _resume(self) -> None:
        part, journal = self._files
        end = 0
        if journal.read(len(self._identity)) == self._identity:
            end = len(self._identity)
            for piece in self.layout.pieces:
                entry = journal.read(n_sum_bytes(piece) + SUM_BYTES)
                sums = entry[:-SUM_BYTES]
                whole = len(sums) == n_sum_bytes(piece)
                if not whole or zlib.crc32(sums).to_bytes(SUM_BYTES, "little") != entry[-SUM_BYTES:]:
                    break
                if not self._is_written(piece, sums):
                    break
                self._sums.append(sums)
                end += len(entry)
            self.n_finished = len(self._sums)
        else:
            part.truncate(0)
        journal.truncate(end)
        journal.seek(end)
        if not end:
            journal.write(self._identity)

    def _is_written(self, piece: Piece, sums: bytes) -> bool:
        place = self._data_start + self.layout.offsets[piece.index]
        try:
            runs = damaged_runs(self._files[0].fileno(), self._part, place, piece.n_bytes, sums)
            return next(runs, None) is None
        except ModelFileError:
            return False

    def _check_space(self) -> None:
        left = self.layout.pieces[self.n_finished :]
        needed = self._data_start + sum(round_up(piece.n_bytes) for piece in left)
        if not hasattr(os, "statvfs"):
            return
        state = os.statvfs(self.path.parent)
        free = state.f_bavail * state.f_frsize
        if needed > free:
            raise DiskSpaceError(
                f"the shard {self.path} needs {needed:,} bytes more but its disk has {free:,} free: "
                "free some, or choose another folder"
            )

    def _write_at(self, place: int, data: memoryview) -> None:
        file = self._files[0]
        file.seek(place)
        while data:
            data = data[file.write(data) :]

    def _sync(self) -> None:
        descriptor = self._files[0].fileno()
        os.fsync(descriptor)
        forget_cached(descriptor, 0, 0)
        self._unsynced = 0

    def _error(self, error: OSError) -> TpiError:
        if error.errno in _FULL:
            size = self._data_start + self.layout.data_bytes
            return DiskSpaceError(
                f"no room for the shard {self.path} of {size:,} bytes ({error.strerror}): "
                "free some, or choose another folder"
            )
        return ModelFileError(f"cannot write the shard {self.path}: {error.strerror}")


def _open_file(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    return os.fdopen(descriptor, "r+b", buffering=0)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
