"""The folder in which one device keeps its shards. Opens headers, never data; any thread, no state.

Ranks that share a machine use a folder each: a complete new shard removes the older ones of the same model.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tpi.errors import TpiError
from tpi.weights.layout import Piece
from tpi.weights.shards.shard import Shard, open_shard
from tpi.weights.streaming.readways import NOTE_SUFFIX

SUFFIX = ".tpishard"
_REMOVED_WITH_IT = (SUFFIX, ".part", ".journal", NOTE_SUFFIX)


class ShardStore:
    """The shards in ``folder``, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_for(self, digest: str, rank: int, pieces: Sequence[Piece], packing: str = "") -> Path:
        """Where the shard of model ``digest`` with these pieces belongs: equal bytes, rank and layout, equal name."""
        content = hashlib.sha256(msgspec.msgpack.encode((digest, packing, tuple(pieces)))).hexdigest()
        return self.folder / f"{_model_key(digest)}-r{rank}-{content[:16]}{SUFFIX}"

    def disk_note(self, digest: str) -> Path:
        """Where to note how the model's own files are read best, if no shard is needed."""
        return self.folder / f"{_model_key(digest)}-whole{NOTE_SUFFIX}"

    def shards(self, digest: str | None = None, packing: str = "") -> list[Shard]:
        """All readable shards, or those of one model; the latest first. Damaged headers are left out, and so are
        rearranged shards, which are nothing to offer or to reuse.
        """
        found = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}"), key=_age, reverse=True):
            try:
                shard = open_shard(path)
            except TpiError:
                continue
            if digest in (None, shard.header.spec.digest) and shard.header.packing == packing:
                found.append(shard)
        return found

    def try_find(self, digest: str, pieces: Sequence[Piece], packing: str = "") -> Shard | None:
        """A shard that holds exactly these pieces, whatever rank or partition it was made for."""
        wanted = tuple(pieces)
        return next((shard for shard in self.shards(digest, packing) if shard.pieces == wanted), None)

    def free_bytes(self) -> int:
        """Room on the disk where the folder is, or will be."""
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free

    def remove_older(self, keep: Shard) -> int:
        """Removes all other shards of the model of ``keep``, unfinished ones and notes about disks too; returns the
        bytes set free.

        To be called when ``keep`` is complete. A file that is open elsewhere stays readable there.
        """
        freed = 0
        for path in self.folder.glob(f"{_model_key(keep.header.spec.digest)}-*"):
            if path.name.endswith(_REMOVED_WITH_IT) and path.name.removesuffix(NOTE_SUFFIX) != keep.path.name:
                freed += path.stat().st_blocks * 512 if hasattr(path.stat(), "st_blocks") else path.stat().st_size
                path.unlink(missing_ok=True)
        return freed


def _model_key(digest: str) -> str:
    # Hashed again because a digest may come from a link, and must not become a path.
    return hashlib.sha256(digest.encode()).hexdigest()[:16]


def _age(path: Path) -> float:
    return path.stat().st_mtime
