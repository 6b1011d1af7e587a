"""Who uses a shard file: readers share a lock on it, so that nobody who makes room removes it. No state; any thread.

Writers lock their journal in the same way, for themselves alone (``shard_writer``). The kernel ends a lock with its
process. Where a system or a file system has no such locks, everything looks as if nobody used it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tpi.errors import ModelFileError
from tpi.weights.files import open_for_reading

if sys.platform != "win32":
    import fcntl


@contextmanager
def used(path: Path) -> Iterator[None]:
    """Until the end, the file at ``path`` is in use.

    Raises:
        ModelFileError: it cannot be opened.
    """
    descriptor = open_for_reading(path)
    try:
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def try_claimed(path: Path) -> Iterator[bool]:
    """Whether nobody else uses the file at ``path``, if it is there and can be read, and so until the end. Does not
    block."""
    try:
        descriptor = open_for_reading(path)
    except ModelFileError:
        yield True
        return
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
