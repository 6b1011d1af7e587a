"""In what chunks and with how many threads a device's disk reads weights fastest: tried once per file, then noted.

The note is a JSON file beside the shard, NAME.disk, with the device, time and size of the files that were tried. Reads
these files with direct I/O; takes the memory of one piece and well under a second. Blocks its caller.
"""

import contextlib
import os
import queue
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tpi.errors import ModelFileError
from tpi.weights.files import PAGE_BYTES
from tpi.weights.stored import Extent, StoredPiece, StoredWeights
from tpi.weights.streaming.arena import allocate
from tpi.weights.streaming.disk import PieceReader, ReadWay

NOTE_SUFFIX = ".disk"

_WAYS = tuple(ReadWay(chunk << 20, readers) for chunk, readers in ((4, 2), (1, 4), (4, 1), (4, 4), (16, 1), (16, 2)))
"""The first is what is used without a trial, and unless another is clearly faster."""
_CLEARLY = 1.1
_FEW_BYTES = 64_000_000
"""Weights of fewer bytes, or that are read only once, are not worth a trial."""
_PIECE_BYTES = 16 << 20
_ROUNDS = 4
_LIMIT_S = 0.6
_RUN_S = 0.025
_RUN_PIECES = 4
"""A run reads this many pieces at most, or for a slow disk one."""


class _Note(msgspec.Struct, frozen=True):
    files: tuple[tuple[int, int, int], ...]
    """Device, time of change in nanoseconds, and size of each file."""
    way: ReadWay


def find_way(stored: StoredWeights, budget_bytes: int, note: Path | None) -> ReadWay:
    """How a window of ``budget_bytes`` should read ``stored``: as noted in ``note``, or else tried and noted there.

    Raises:
        ModelFileError: a file cannot be read.
        MemoryBudgetError: the system does not give the memory for a trial.
    """
    if budget_bytes >= stored.arena_bytes or stored.arena_bytes < _FEW_BYTES:
        return ReadWay()
    try:
        files = tuple((stat.st_dev, stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, stored.paths))
    except OSError as error:
        raise ModelFileError(f"cannot read {error.filename}: {error.strerror}") from error
    noted = _read(note) if note is not None else None
    if noted is not None and noted.files == files:
        return noted.way
    way = try_ways(stored, min(_PIECE_BYTES, budget_bytes))
    if note is not None:
        _write(note, _Note(files, way))
    return way


def noted_rate(folder: Path) -> float:
    """Bytes per second of the disk that weights were read from, by the note in ``folder`` about the files that changed
    last; 0 if no rate was noted."""
    notes = [note for path in folder.glob(f"*{NOTE_SUFFIX}") if (note := _read(path)) and note.way.bytes_per_s > 0]
    newest = max(notes, key=lambda note: max((changed for _, changed, _ in note.files), default=0), default=None)
    return newest.way.bytes_per_s if newest else 0.0


def try_ways(stored: StoredWeights, memory_bytes: int) -> ReadWay:
    """Reads parts of ``stored`` in several ways by turns, each part once, for less than a second if the disk is fast
    enough, into ``memory_bytes`` of its own. The default way if the file system refuses direct reads or the disk is too
    slow to tell.

    Raises:
        ModelFileError: a file cannot be read.
        MemoryBudgetError: the system does not give so much memory.
    """
    rates: dict[ReadWay, list[float]] = {}
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(PieceReader(stored, way)) for way in _WAYS]
        if not readers[0].is_direct:
            return ReadWay()
        memory = stack.enter_context(memoryview(stack.enter_context(allocate(memory_bytes, "to try the disk with"))))
        places = _places(stored, memory_bytes)
        started = time.perf_counter()
        _run(readers[0], [next(places)], memory)  # memory and disk wake up
        n_pieces = max(1, min(_RUN_PIECES, round(_RUN_S / (time.perf_counter() - started))))
        for number in range(_ROUNDS):
            measured = []
            for turn in range(len(_WAYS)):
                if time.perf_counter() - started > _LIMIT_S and (number or turn):
                    break
                reader = readers[(turn + number) % len(_WAYS)]
                measured.append((reader.way, _run(reader, [next(places) for _ in range(n_pieces)], memory)))
            if len(measured) == len(_WAYS) or not rates:
                for way, rate in measured:
                    rates.setdefault(way, []).append(rate)
    medians = {way: statistics.median(found) for way, found in rates.items()}
    default = _WAYS[0]
    best = max(medians, key=lambda way: medians[way])
    if len(medians) < len(_WAYS) or medians[best] < _CLEARLY * medians[default]:
        best = default
    return msgspec.structs.replace(best, bytes_per_s=medians[best])


def _run(reader: PieceReader, pieces: list[StoredPiece], memory: memoryview) -> float:
    """Bytes per second of reading ``pieces`` at once, all into the same memory: nobody looks at them."""
    done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    started = time.perf_counter()
    for piece in pieces:
        reader.start(piece, memory[: piece.arena_bytes], done.put)
    errors = [done.get() for _ in pieces]
    seconds = time.perf_counter() - started
    for error in errors:
        if error is not None:
            raise error
    return sum(piece.arena_bytes for piece in pieces) / seconds


def _places(stored: StoredWeights, n_bytes: int) -> Iterator[StoredPiece]:
    """Runs of ``n_bytes`` of the largest file, one after the other and around the end."""
    sizes = [path.stat().st_size for path in stored.paths]
    file = sizes.index(max(sizes))
    n_bytes = min(n_bytes, sizes[file]) // PAGE_BYTES * PAGE_BYTES
    while True:
        for place in range(sizes[file] // n_bytes):
            yield StoredPiece(0, (Extent(file, place * n_bytes, n_bytes, 0),), n_bytes, ())


def _read(note: Path) -> _Note | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=_Note)
    except (OSError, msgspec.DecodeError):
        return None


def _write(note: Path, content: _Note) -> None:
    """Without a note the next start tries again, no more."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{os.getpid()}")
        temporary.write_bytes(msgspec.json.encode(content))
        temporary.replace(note)
