"""Locks between processes that share a folder of shards: who writes a file or has it in use, and who may remove it.

A lock belongs to an open descriptor and ends with it; nobody waits for one. Where there are none, as on Windows, every
lock is granted. Any thread.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

LOCK_LIMIT_S, LOCK_POLL_S = 1.0, 0.05
"""Whoever removes a file, or looks whether it is in use, has it locked for a moment: how long to try, how often."""


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Locks the file that is open; False: someone else has it, or has it alone if ``shared``."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``: who had the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@contextmanager
def try_claimed(path: Path) -> Iterator[bool]:
    """Whether nobody has the file at ``path`` locked, if there is one; until the end nobody can lock it."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))  # some systems lock no others
    except OSError as error:
        yield isinstance(error, FileNotFoundError)
        return
    try:
        yield try_lock(descriptor) and is_at(descriptor, path)
    finally:
        os.close(descriptor)
