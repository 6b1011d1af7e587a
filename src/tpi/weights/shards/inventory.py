"""What a folder of shards holds, finished or not, and removing it. Opens headers, never data; any thread, no state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import TpiError
from tpi.weights.shards.filelock import try_claimed
from tpi.weights.shards.shard import Shard, open_shard
from tpi.weights.shards.shard_writer import JOURNAL_SUFFIX, PART_SUFFIX
from tpi.weights.shards.store import SUFFIX
from tpi.weights.streaming.readways import NOTE_SUFFIX


@dataclass(frozen=True)
class Entry:
    """A shard on disk: its files, the bytes that they take there, and when it was written, in seconds since 1970.

    ``path`` is its name, which an unfinished one does not have yet. ``shard`` None: it is unfinished, or its header
    cannot be read. ``lock``: the file that who uses it has locked.
    """

    path: Path
    is_finished: bool
    shard: Shard | None
    files: tuple[Path, ...]
    lock: Path
    n_bytes: int
    written_s: float

    @property
    def model_key(self) -> str:
        """Equal for all shards of a model."""
        return self.path.name.partition("-")[0]

    @property
    def is_used(self) -> bool:
        """Whether a rank reads it now, or somebody writes it."""
        with try_claimed(self.lock) as is_free:
            return not is_free

    def suits(self, repacking: str) -> bool:
        """Whether kernels whose order is ``repacking`` can read it, as far as that is known."""
        return self.shard is None or self.shard.header.repacking in ("", repacking)


def list_entries(folder: Path) -> list[Entry]:
    """All shards in the folder of one device, by name; none if there is no such folder.

    Raises:
        OSError: it cannot be read.
    """
    finished = sorted(folder.glob(f"*{SUFFIX}"))
    unfinished = (PART_SUFFIX, JOURNAL_SUFFIX)
    begun = sorted({path.with_suffix("") for end in unfinished for path in folder.glob(f"*{SUFFIX}{end}")})
    entries = [_entry(path, True, path, _beside(path, "", NOTE_SUFFIX)) for path in finished]
    entries += [_entry(path, False, _beside(path, JOURNAL_SUFFIX)[0], _beside(path, *unfinished)) for path in begun]
    return [entry for entry in entries if entry is not None]


def try_remove(entry: Entry) -> bool:
    """Removes it, unless it is in use; returns whether it is gone.

    Raises:
        OSError: a file cannot be removed.
    """
    with try_claimed(entry.lock) as is_free:
        if is_free:
            for file in entry.files:
                file.unlink(missing_ok=True)
        return is_free


def _beside(path: Path, *ends: str) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + end) for end in ends)


def _entry(path: Path, is_finished: bool, lock: Path, files: Sequence[Path]) -> Entry | None:
    """None: it is gone meanwhile, or has another name now."""
    states = []
    for file in files:
        try:
            states.append(file.stat())
        except FileNotFoundError:
            continue
    if not states:
        return None
    shard = None
    if is_finished:
        try:
            shard = open_shard(path)
        except TpiError:
            shard = None
    n_bytes = sum(state.st_blocks * 512 if hasattr(state, "st_blocks") else state.st_size for state in states)
    return Entry(path, is_finished, shard, tuple(files), lock, n_bytes, states[0].st_mtime)
