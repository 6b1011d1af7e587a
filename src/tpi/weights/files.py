"""Reading byte ranges of files exactly, with errors that name the file and the place. Owns no descriptor.

Any thread; several threads may read one descriptor at once.
"""

import os
import threading
from pathlib import Path

from tpi.errors import ModelFileError

PAGE_BYTES = 4096
"""What direct reads are aligned to: place in the file, length and memory."""

_seek_lock = threading.Lock()


def round_up(n_bytes: int, to: int = PAGE_BYTES) -> int:
    """The next multiple of ``to``."""
    return -(-n_bytes // to) * to


def open_for_reading(path: Path) -> int:
    """A new descriptor, the caller's.

    Raises:
        ModelFileError: the file cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def read_some(descriptor: int, offset: int, out: memoryview) -> int:
    """Fills the start of ``out`` with bytes from ``offset``, blocking; returns how many, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [out], offset)
    with _seek_lock:  # Windows has no read at a position
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(out))
    out[: len(data)] = data
    return len(data)


def read_exactly(descriptor: int, path: Path, offset: int, out: memoryview) -> None:
    """Fills all of ``out`` (bytes) from ``offset``, blocking.

    Raises:
        ModelFileError: the file ends before, or cannot be read.
    """
    done = 0
    while done < len(out):
        try:
            n_read = read_some(descriptor, offset + done, out[done:])
        except OSError as error:
            raise cannot_read(path, offset + done, error) from error
        if n_read == 0:
            raise ends_early(path, descriptor, offset + len(out))
        done += n_read


def cannot_read(path: Path, offset: int, error: OSError) -> ModelFileError:
    """The error for a failed read at ``offset``."""
    return ModelFileError(f"cannot read {path} at byte {offset:,}: {error.strerror}; check the disk")


def ends_early(path: Path, descriptor: int, needed: int) -> ModelFileError:
    """The error for an open file that ends although bytes up to ``needed`` are wanted."""
    end = os.fstat(descriptor).st_size
    return ModelFileError(f"{path} is truncated: it ends at byte {end:,} but {needed:,} are needed; fetch it again")


def forget_cached(descriptor: int, offset: int, n_bytes: int) -> None:
    """Asks the kernel to drop the range from its page cache, so that streaming does not push out other files."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, n_bytes, os.POSIX_FADV_DONTNEED)
