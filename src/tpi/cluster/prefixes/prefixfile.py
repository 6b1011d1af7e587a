"""The bytes of a file that holds a part of a saved prefix: whole or not there, and never taken for what it is not.

====== ============ ==========================================================
offset bytes        field
====== ============ ==========================================================
0      8            magic ``b"tpi-pfx\\0"``
8      4            version, u32: 1
12     4            H: bytes of the header, u32, at most 4,194,304
16     8            P: bytes of the payload, u64
24     H            header, MessagePack: what the payload belongs to
24+H   P            payload
24+H+P 4            CRC-32 of everything before, u32
====== ============ ==========================================================

All numbers are little-endian. Nothing is read beyond what the lengths say, and they must be those of the file. What is
being written has a name that begins with a dot. Messages name files, not folders: callers read them. Any thread.
"""

import contextlib
import errno
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Self

from tpi.errors import ChecksumError, DiskSpaceError, ModelFileError, UsageError

MAGIC = b"tpi-pfx\0"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 4 << 20
_START = struct.Struct("<8sIIQ")
_CRC = struct.Struct("<I")
_BUFFER_BYTES = 1 << 20
_UNFINISHED = ".tpi-unfinished"


def write_prefix_file(path: Path, header: bytes, n_payload_bytes: int, payload: Iterable[memoryview | bytes]) -> int:
    """Writes a file that its owner alone can read; a crash leaves the old one or the new one. Returns its length.

    Raises:
        UsageError: see ``check_replaceable``.
        DiskSpaceError: it cannot be written.
    """
    check_replaceable(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(_UNFINISHED, f".{path.name}.", path.parent)
        try:
            with os.fdopen(descriptor, "wb", _BUFFER_BYTES) as file:
                crc = 0
                for run in (_START.pack(MAGIC, FORMAT_VERSION, len(header), n_payload_bytes), header, *payload):
                    file.write(run)
                    crc = zlib.crc32(run, crc)
                file.write(_CRC.pack(crc))
                n_bytes = file.tell()
                file.flush()
                os.fsync(file.fileno())
            assert n_bytes == _START.size + len(header) + n_payload_bytes + _CRC.size, "the payload is as long as said"
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space there" if is_full else "look after its folder there"
        raise DiskSpaceError(f"cannot write {path.name}: {error.strerror}; {remedy}") from None
    return n_bytes


def check_replaceable(path: Path) -> None:
    """Raises:
    UsageError: something is there that is no such file.
    """
    try:
        with path.open("rb") as file:
            is_own = file.read(len(MAGIC)) == MAGIC
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        is_own = False
    if not is_own:
        raise UsageError(f"{path.name} is there, and is no saved text: choose another name")


def remove_unfinished(folder: Path) -> None:
    """What was being written in ``folder`` when processes that have ended were killed."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f".*{_UNFINISHED}"):
            path.unlink()


class PrefixFile:
    """An open file, whose lengths are sound. A context manager; ``close`` is idempotent."""

    def __init__(self, path: Path) -> None:
        """Raises:
        ModelFileError: there is none, or it is no such file, or not all of it.
        """
        self._name = path.name
        try:
            self._file: IO[bytes] = path.open("rb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise ModelFileError(f"cannot read {path.name}: {error.strerror}; save it again") from None
        try:
            self._crc = 0
            self.n_bytes = os.fstat(self._file.fileno()).st_size
            self.header, self.n_payload_bytes = self._read_start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, views: Iterable[memoryview]) -> None:
        """Fills ``views``, which are as long as the payload together, with it; once.

        Raises:
            ChecksumError: the file is damaged; ``views`` hold whatever.
            ModelFileError: it cannot be read.
        """
        for view in views:
            self._fill(view)
        expected, found = self._crc, bytearray(_CRC.size)
        self._fill(memoryview(found))
        if _CRC.unpack(found)[0] != expected:
            raise ChecksumError(f"{self._name} is damaged: its bytes differ from their checksum; save it again")

    def check(self) -> None:
        """Reads all of it; raises as ``read``."""
        self.read(self._nowhere())

    def _nowhere(self) -> Iterator[memoryview]:
        scratch = memoryview(bytearray(_BUFFER_BYTES))
        for start in range(0, self.n_payload_bytes, _BUFFER_BYTES):
            yield scratch[: min(_BUFFER_BYTES, self.n_payload_bytes - start)]

    def _read_start(self) -> tuple[bytes, int]:
        start = bytearray(_START.size)
        if self.n_bytes < _START.size:
            raise ModelFileError(f"{self._name} is no saved text: it has {self.n_bytes} bytes; name another")
        self._fill(memoryview(start))
        magic, version, n_header, n_payload = _START.unpack(start)
        if magic != MAGIC:
            raise ModelFileError(f"{self._name} is no saved text: it begins with {magic!r}; name another")
        if version != FORMAT_VERSION:
            raise ModelFileError(
                f"{self._name} has format {version}, this version of tpi reads {FORMAT_VERSION}: save it again"
            )
        expected = _START.size + n_header + n_payload + _CRC.size
        if n_header > MAX_HEADER_BYTES or expected != self.n_bytes:
            raise ModelFileError(
                f"{self._name} is damaged: it has {self.n_bytes:,} bytes, not {expected:,}; save it again"
            )
        header = bytearray(n_header)
        self._fill(memoryview(header))
        return bytes(header), n_payload

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                n_read = self._file.readinto(view[done:])  # type: ignore[attr-defined]
            except OSError as error:
                raise ModelFileError(f"cannot read {self._name}: {error.strerror}; check the disk") from None
            if not n_read:
                raise ModelFileError(f"{self._name} is truncated; save it again")
            done += n_read
        self._crc = zlib.crc32(view, self._crc)
