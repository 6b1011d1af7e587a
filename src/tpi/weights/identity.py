"""The identity of a model's bytes: what shards and plans compare. Any thread; ``Digesting`` owns one.

A digest is the sha256 over, in this order: the size of every file as 8 bytes little-endian, and the sha256 of every
4 MiB of every file, the last of each being shorter. Holes are not read: they have the sum of the zeros that they stand
for. Where tensors are made of what lies in the files, it is the sha256 over that and the header's digest, which says
how. What was computed is kept in ``digests.json`` in a cache folder, with what the file system says of the files.
"""

import contextlib
import errno
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tpi.errors import Cancelled, ModelFileError
from tpi.gguf.reader import Gguf
from tpi.weights.files import ends_early, forget_cached, open_for_reading, read_exactly
from tpi.weights.shards.shard import ByteProgress

_BLOCK_BYTES = 4 << 20
_CACHE_NAME = "digests.json"
_MAX_CACHED = 64


class _FileState(msgspec.Struct, frozen=True):
    """What changes when a file's bytes do."""

    size: int
    inode: int
    device: int
    modified_ns: int
    changed_ns: int


class _Cached(msgspec.Struct, frozen=True):
    files: tuple[_FileState, ...]
    digest: str


def model_digest(gguf: Gguf, cache: Path | None = None, progress: ByteProgress | None = None) -> str:
    """64 hex digits that name all bytes of the model's files. Copies have the same digest, another split of the same
    model has not.

    Blocks: reads everything, a few MB at a time, unless the folder ``cache`` has the digest of these very files.
    ``progress`` is called after each of these.

    Raises:
        ModelFileError: a file is gone, shorter than it was, cannot be read, or is being changed.
    """
    with ExitStack() as stack:
        descriptors: list[int] = []
        for path in gguf.paths:
            descriptors.append(open_for_reading(path))
            stack.callback(os.close, descriptors[-1])
        for tensor in gguf.tensors.values():
            if tensor.recipe is None and tensor.offset + tensor.n_bytes > os.fstat(descriptors[tensor.file]).st_size:
                path = gguf.paths[tensor.file]
                raise ends_early(path, descriptors[tensor.file], tensor.offset + tensor.n_bytes)
        files = _states(descriptors)
        for known in _read_cache(cache):
            if known.files == files:
                return _of_model(gguf, known.digest)
        digest = _hash(gguf.paths, descriptors, files, progress)
        for path, before, after in zip(gguf.paths, files, _states(descriptors), strict=True):
            if before != after:
                raise ModelFileError(f"{path} was changed while it was read: start again when it is complete")
    _write_cache(cache, _Cached(files, digest))
    return _of_model(gguf, digest)


class Digesting:
    """Computes a model's digest, beginning at once. A context manager; ``close`` is idempotent."""

    def __init__(self, gguf: Gguf, cache: Path) -> None:
        """As ``model_digest``."""
        self.n_done = self.n_bytes = 0
        """How far it is; both 0 if nothing is to be read."""
        self._gguf, self._cache = gguf, cache
        self._digest: str | None = None
        self._error: BaseException | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="tpi-digest", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread after the few MB that it reads."""
        self._is_closing = True
        self._thread.join()

    def try_wait(self, timeout_s: float) -> str | None:
        """The digest, or None if it is not there after ``timeout_s``.

        Raises:
            ModelFileError: see ``model_digest``.
        """
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return self._digest

    def _run(self) -> None:
        try:
            self._digest = model_digest(self._gguf, self._cache, self._count)
        except BaseException as error:
            self._error = error

    def _count(self, n_done: int, n_bytes: int) -> None:
        self.n_done, self.n_bytes = n_done, n_bytes
        if self._is_closing:
            raise Cancelled("reading the model was ended")


def _of_model(gguf: Gguf, digest: str) -> str:
    """The digest of a model whose files have ``digest``."""
    if all(tensor.recipe is None for tensor in gguf.tensors.values()):
        return digest
    return hashlib.sha256(f"{digest} {gguf.header_digest}".encode()).hexdigest()


def _states(descriptors: Sequence[int]) -> tuple[_FileState, ...]:
    stats = map(os.fstat, descriptors)
    return tuple(_FileState(s.st_size, s.st_ino, s.st_dev, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


def _hash(
    paths: Sequence[Path], descriptors: Sequence[int], files: Sequence[_FileState], progress: ByteProgress | None
) -> str:
    digest = hashlib.sha256(b"".join(file.size.to_bytes(8, "little") for file in files))
    total, done = sum(file.size for file in files), 0
    buffer = memoryview(bytearray(min(_BLOCK_BYTES, total)))
    for path, descriptor, file in zip(paths, descriptors, files, strict=True):
        for place in range(0, file.size, _BLOCK_BYTES):
            block = buffer[: file.size - place]
            if _next_data(descriptor, place) >= place + len(block):
                digest.update(_sum_of_zeros(len(block)))
            else:
                read_exactly(descriptor, path, place, block)
                forget_cached(descriptor, place, len(block))
                digest.update(hashlib.sha256(block).digest())
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def _next_data(descriptor: int, place: int) -> int:
    """Where the first byte from ``place`` on is that does not lie in a hole, as far as the file system tells."""
    if sys.platform == "win32":
        return place
    try:
        return os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        return sys.maxsize if error.errno == errno.ENXIO else place


@functools.cache
def _sum_of_zeros(n_bytes: int) -> bytes:
    return hashlib.sha256(bytes(n_bytes)).digest()


def _read_cache(folder: Path | None) -> list[_Cached]:
    """The latest last; none if there is no cache, or it is damaged."""
    if folder is None:
        return []
    try:
        return msgspec.json.decode((folder / _CACHE_NAME).read_bytes(), type=list[_Cached])
    except (OSError, msgspec.DecodeError):
        return []


def _write_cache(folder: Path | None, latest: _Cached) -> None:
    """Without it the next start reads everything again, no more."""
    if folder is None:
        return
    temporary = folder / f"{_CACHE_NAME}.{threading.get_native_id()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode([*_read_cache(folder), latest][-_MAX_CACHED:]))
        temporary.replace(folder / _CACHE_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
