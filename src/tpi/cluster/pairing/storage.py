"""Private files: written whole or not at all, readable by their owner only. No threads."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tpi.errors import DiskSpaceError, PairingError

try:
    import fcntl
except ImportError:  # Windows: one process at a time must do
    fcntl = None  # type: ignore[assignment]


def make_private_folder(folder: Path) -> None:
    """Create ``folder`` (mode 0700) and its parents where they are missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PairingError(f"cannot create the folder {folder}: {error.strerror}") from None


def write_private(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` with mode 0600; a crash leaves the old file or the new one."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise DiskSpaceError(f"cannot write {path}: {error.strerror}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that use ``locked`` with the same path out."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise PairingError(f"cannot use the folder {path.parent}: {error.strerror}") from None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
