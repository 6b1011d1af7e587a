"""The folder in which one device keeps its shards. Opens headers, never data. One thread.

Ranks that share a machine use a folder each: a complete new shard removes the older ones of the same model. Sessions of
one user share these folders. Who writes a shard has its journal locked, who uses one has a shared lock on the file, and
only what nobody has locked is removed.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec

from tpi.errors import ModelFileError, TpiError
from tpi.weights.files import open_for_reading
from tpi.weights.layout import Piece
from tpi.weights.shards.filelock import LOCK_LIMIT_S, LOCK_POLL_S, is_at, try_lock
from tpi.weights.shards.shard import Shard, open_shard
from tpi.weights.shards.shard_writer import JOURNAL_SUFFIX, PART_SUFFIX
from tpi.weights.streaming.readways import NOTE_SUFFIX

SUFFIX = ".tpishard"


class ShardStore:
    """The shards in ``folder``, which need not exist yet. A context manager; ``close`` is idempotent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[Path, int] = {}
        """Descriptors with a shared lock."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others remove what was in use here."""
        while self._held:
            os.close(self._held.popitem()[1])

    def path_for(self, digest: str, rank: int, pieces: Sequence[Piece], repacking: str = "") -> Path:
        """Where the shard of model ``digest`` with these pieces belongs: equal bytes, rank and layout, equal name."""
        content = hashlib.sha256(msgspec.msgpack.encode((digest, repacking, tuple(pieces)))).hexdigest()
        return self.folder / f"{_model_key(digest)}-r{rank}-{content[:16]}{SUFFIX}"

    def disk_note(self, digest: str) -> Path:
        """Where to note how the model's own files are read best, if no shard is needed."""
        return self.folder / f"{_model_key(digest)}-whole{NOTE_SUFFIX}"

    def shards(self, digest: str | None = None) -> list[Shard]:
        """All readable shards, or those of one model, rearranged or not; the latest first. Damaged headers are left
        out."""
        found = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}"), key=_age, reverse=True):
            try:
                shard = open_shard(path)
            except TpiError:
                continue
            if digest in (None, shard.header.spec.digest):
                found.append(shard)
        return found

    def try_find(self, digest: str, pieces: Sequence[Piece], repacking: str = "") -> Shard | None:
        """A shard that holds exactly these pieces, in the order of ``repacking``, whatever rank or partition it was
        made for; see ``hold``."""
        wanted = repacking, tuple(pieces)
        found = (shard for shard in self.shards(digest) if (shard.header.repacking, shard.pieces) == wanted)
        return next((shard for shard in found if self.hold(shard)), None)

    def hold(self, shard: Shard) -> bool:
        """Keeps other processes from removing the shard, until this one makes another of the model, or closes the
        store; False: one has removed it."""
        if sys.platform == "win32":  # an open file could not be replaced there
            return True
        deadline_s = time.monotonic() + LOCK_LIMIT_S
        while True:
            try:
                descriptor = open_for_reading(shard.path)
            except ModelFileError:
                return False
            is_locked = try_lock(descriptor, shared=True)
            if is_locked and is_at(descriptor, shard.path):
                break
            os.close(descriptor)
            if time.monotonic() > deadline_s:
                return False
            time.sleep(LOCK_POLL_S)  # whoever looks whether it is in use has it locked for a moment
        self._let_go(shard.path)
        self._held[shard.path] = descriptor
        return True

    def free_bytes(self) -> int:
        """Room on the disk where the folder is, or will be."""
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free

    def remove_older(self, keep: Shard) -> int:
        """Holds ``keep``, which is complete, and removes all other shards of its model, unfinished ones and notes about
        disks too, but what other processes write or hold; returns the bytes set free.

        Raises:
            ModelFileError: another process has removed ``keep``.
        """
        if not self.hold(keep):
            raise ModelFileError(f"another process has removed {keep.path}: start again")
        found = self.folder.glob(f"{_model_key(keep.header.spec.digest)}-*{SUFFIX}*")
        others = {path.with_name(path.name.split(SUFFIX)[0] + SUFFIX) for path in found} - {keep.path}
        freed = 0
        for path in others:
            self._let_go(path)
            freed += _remove_unused(path)
        _remove(self.disk_note(keep.header.spec.digest))
        return freed

    def _let_go(self, path: Path) -> None:
        if path in self._held:
            os.close(self._held.pop(path))


def _remove_unused(shard: Path) -> int:
    """Removes all files of the shard that nobody writes or holds; returns the bytes set free."""
    journal = shard.with_name(shard.name + JOURNAL_SUFFIX)
    with contextlib.ExitStack() as stack:
        if not _try_own(journal, os.O_CREAT, stack):
            return 0
        is_unused = not shard.exists() or _try_own(shard, 0, stack)
        endings = (PART_SUFFIX, "", NOTE_SUFFIX, JOURNAL_SUFFIX) if is_unused else (PART_SUFFIX, JOURNAL_SUFFIX)
        return sum(_remove(shard.with_name(shard.name + ending)) for ending in endings)


def _try_own(path: Path, flags: int, stack: contextlib.ExitStack) -> bool:
    """Locks the file until ``stack`` ends; False: another process has it."""
    if sys.platform == "win32":  # an open file could not be removed there
        return True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    except OSError:
        return False
    stack.callback(os.close, descriptor)
    return try_lock(descriptor) and is_at(descriptor, path)


def _remove(path: Path) -> int:
    try:
        stat = path.stat()
        path.unlink()
    except OSError:
        return 0
    return stat.st_blocks * 512 if sys.platform != "win32" else stat.st_size


def _model_key(digest: str) -> str:
    # Hashed again because a digest may come from a link, and must not become a path.
    return hashlib.sha256(digest.encode()).hexdigest()[:16]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it was removed meanwhile
        return 0.0
