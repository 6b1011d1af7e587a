"""A folder for the keys of a cluster that lives on this machine alone: private, and gone with the process that made it.

Whoever made a folder keeps it locked. Folders that nobody locks are those of processes that were killed; the next one
removes them. No threads.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

_PREFIX = "tpi-keys-"


@contextlib.contextmanager
def open_key_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder of mode 0700 in ``parent``, by default the folder for temporary files; removed at the end, with all
    that is in it. Removes those of processes that were killed."""
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Removes this user's folders in ``parent`` that no process has locked; follows no links."""
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
            if entry.name.startswith(_PREFIX):
                _remove_unlocked(Path(entry.path))


def _make(parent: Path) -> tuple[Path, int | None]:
    """The folder, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        if fcntl is None:
            return folder, None
        try:
            lock = _open(folder)
        except FileNotFoundError:  # another process took it for an abandoned one, before the lock
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks, where nobody removes anything
            os.close(lock)
            return folder, None
        if _is_at(lock, folder):
            return folder, lock
        os.close(lock)


def _remove_unlocked(folder: Path) -> None:
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        lock = _open(folder)
        try:
            found = os.fstat(lock)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, folder):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether it is still this folder that is there."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(folder))
    except FileNotFoundError:
        return False
