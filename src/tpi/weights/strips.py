"""Strips of whole rows of a model's file, read once for all ranks whose columns are cut from them at the same time.

Of a matrix that is cut between columns every rank needs a little of every row, so each would read all of it. Ranks put
their shards together in the same order: the strip of rows that one has read stays until the others have taken theirs.
Who is ahead waits for who is behind, as long as that one gets on: nothing begins before all are done. There is a limit
to the memory, and to the waiting; beyond them rows are read again.

Any thread; each rank's strips are taken by one.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.model.blocks import Axis, Block
from tpi.model.partition import Partition
from tpi.model.spans import Share, Span, Spans, joined, total_size
from tpi.weights.patches import gather

LIMIT_BYTES = 32_000_000
_N_STRIPS = 16
"""Into so many the memory is divided."""
_LEAST_BYTES = 2_000_000
_MEMORY_SHARE = 32
"""Of what a process may use for everything, which also has a piece in memory, and as yet no window."""
AWAY_S = 10.0
"""Who has taken nothing for so long, or has not begun, is not waited for."""
WAIT_LIMIT_S = 20.0
"""Of one read; less than a worker waits for an answer."""
_POLL_S = 0.2

_Bytes: TypeAlias = npt.NDArray[np.uint8]
_Place: TypeAlias = tuple[int, int]
"""A row in the order in which ranks need them: number of its tensor, row."""


@dataclass
class _Taker:
    """A rank: what it takes next, when it last took something, whether it waits although it has seen all that has
    changed, and whether others have waited for it in vain."""

    place: _Place
    seen_s: float
    is_waiting: bool = False
    is_left: bool = False


@dataclass(frozen=True)
class _Cut:
    """A tensor of a block that is cut between columns, its place in the order, and the ranks' shares of the block."""

    tensor: str
    number: int
    block: Block
    shares: tuple[Share, ...]

    @cached_property
    def needs(self) -> tuple[Spans, ...]:
        """Of each rank the rows of which it needs some columns."""
        return tuple(_needed_rows(self.block, self.tensor, share) for share in self.shares)


@dataclass
class _Strip:
    """Rows of a tensor, ``n_bytes`` in all; ``data`` None: they are being read."""

    cut: _Cut
    rows: Span
    n_bytes: int
    data: _Bytes | None = None

    @property
    def place(self) -> _Place:
        return self.cut.number, self.rows.start

    @property
    def stop(self) -> _Place:
        return self.cut.number, self.rows.stop


@dataclass(frozen=True)
class WholeRows:
    """A tensor in the model's file: ``n_rows`` of ``row_bytes``; ``read`` fills memory with rows from a number on."""

    tensor: str
    n_rows: int
    row_bytes: int
    read: Callable[[int, memoryview], None]

    def cut(self, rows: Span) -> _Bytes:
        """These rows, read now: uint8 [rows.size, row_bytes]."""
        found = np.empty((rows.size, self.row_bytes), np.uint8)
        self.read(rows.start, found.data.cast("B"))
        return found


@dataclass
class _Plan:
    """Who needs what, in which order, and the strips that are there."""

    cuts: dict[str, _Cut] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    takers: dict[int, _Taker] = field(default_factory=dict)
    strips: dict[_Place, _Strip] = field(default_factory=dict)


class _Turn(Enum):
    """What a rank that wants a strip is to do."""

    TAKE = auto()
    READ = auto()
    WAIT = auto()
    READ_ALONE = auto()


def limit_for(memory_bytes: int | None) -> int:
    """The memory for strips in a process that may use so much, None: as much as it likes."""
    return LIMIT_BYTES if memory_bytes is None else max(_LEAST_BYTES, min(LIMIT_BYTES, memory_bytes // _MEMORY_SHARE))


class Strips:
    """The strips of one model that are in memory, at most ``limit_bytes``."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self.strip_bytes = limit_bytes // _N_STRIPS
        """A strip has at most so many, or one row."""
        self._changed = threading.Condition()
        self._plan = _Plan()

    @property
    def n_bytes(self) -> int:
        """The memory that is used."""
        with self._changed:
            return self._n_bytes()

    def expect(self, blocks: Sequence[Block], partition: Partition) -> None:
        """From now on all ranks may take what ``partition`` gives them; what was before is forgotten."""
        plan, now_s = _Plan(), time.monotonic()
        for block in blocks:
            for slot in block.slots + (block.experts.slots if block.experts is not None else ()):
                tensor = slot.tensor.name
                number = plan.numbers.setdefault(tensor, len(plan.numbers))
                if slot.axis is Axis.COLUMNS:
                    plan.cuts[tensor] = _Cut(tensor, number, block, partition.shares[block.index])
        plan.takers = {rank: _Taker((-1, 0), now_s) for rank in range(partition.n_ranks)}
        self._begin(plan)

    def leave(self, rank: int) -> None:
        """The rank needs no more."""
        with self._changed:
            self._plan.takers.pop(rank, None)
            self._drop()
            self._tell()

    def forget(self) -> None:
        """All ranks have what they need: gives the memory back."""
        self._begin(_Plan())

    def reader(self, rank: Callable[[], int], check: Callable[[], None] = lambda: None) -> "StripReader":
        """For what a rank is cut; ``check`` is called about every 0.2 s while it waits, and may raise."""
        return StripReader(self, rank, check)

    # For readers.

    def pass_by(self, rank: int, tensor: str) -> None:
        """The rank takes whole rows of a tensor, and no more of those before."""
        with self._changed:
            taker, number = self._plan.takers.get(rank), self._plan.numbers.get(tensor)
            if taker is not None and number is not None:
                taker.seen_s, taker.place = time.monotonic(), max(taker.place, (number, 0))

    def try_take(
        self, rank: int, source: WholeRows, rows: Span, check: Callable[[], None], deadline_s: float
    ) -> _Bytes | None:
        """A strip for ``rank``, read now if it is not there; blocks, until ``deadline_s`` to let others catch up. None:
        nobody else will take it.

        Raises:
            ModelFileError: the file cannot be read; and what ``check`` raises.
        """
        while True:
            with self._changed:
                turn, strip = self._turn_of(rank, source, rows, time.monotonic() < deadline_s)
                if turn is _Turn.READ_ALONE or strip is None:
                    return None
                if turn is _Turn.TAKE:
                    return strip.data
                if turn is _Turn.READ:
                    break
                self._changed.wait(_POLL_S)
            check()
        try:
            strip.data = source.cut(rows)
        finally:
            with self._changed:
                if strip.data is None and self._plan.strips.get(strip.place) is strip:
                    del self._plan.strips[strip.place]
                self._tell()
        return strip.data

    def advance(self, rank: int, tensor: str, row: int) -> None:
        """The rank has taken what it needs of the rows before ``row``."""
        with self._changed:
            taker, cut = self._plan.takers.get(rank), self._plan.cuts.get(tensor)
            if taker is not None and cut is not None:
                taker.seen_s, taker.place = time.monotonic(), (cut.number, row)
                self._drop()

    def _begin(self, plan: _Plan) -> None:
        with self._changed:
            self._plan = plan
            self._tell()

    def _turn_of(self, rank: int, source: WholeRows, rows: Span, is_patient: bool) -> tuple[_Turn, _Strip | None]:
        plan = self._plan
        cut, taker = plan.cuts.get(source.tensor), plan.takers.get(rank)
        if cut is None or taker is None:
            return _Turn.READ_ALONE, None
        new = _Strip(cut, rows, rows.size * source.row_bytes)
        taker.seen_s, taker.place, taker.is_waiting = time.monotonic(), new.place, False
        self._drop()
        if (strip := plan.strips.get(new.place)) is not None:
            taker.is_left = False
            return (_Turn.WAIT if strip.data is None else _Turn.TAKE), strip
        if not any(self._wants(other, new) for other in plan.takers if other != rank):
            return _Turn.READ_ALONE, None
        if self._n_bytes() + new.n_bytes <= self._limit_bytes:
            plan.strips[new.place] = new
            self._tell()
            return _Turn.READ, new
        slow = self._slow_ones(rank)
        if slow and is_patient:
            taker.is_waiting = True
            return _Turn.WAIT, new
        for other in slow:
            other.is_left = True
        return _Turn.READ_ALONE, None

    def _slow_ones(self, rank: int) -> list[_Taker]:
        """Others who will take what there is, and do not wait themselves."""
        plan = self._plan
        others = {other: taker for other, taker in plan.takers.items() if other != rank and not taker.is_waiting}
        strips = plan.strips.values()
        return [taker for other, taker in others.items() if any(self._wants(other, strip) for strip in strips)]

    def _wants(self, rank: int, strip: _Strip) -> bool:
        """Whether the rank gets on and will take some of the strip."""
        taker, cut = self._plan.takers[rank], strip.cut
        if taker.is_left or taker.place >= strip.stop or time.monotonic() - taker.seen_s > AWAY_S:
            return False
        start = max(taker.place, strip.place)[1]
        return any(span.start < strip.rows.stop and start < span.stop for span in cut.needs[rank])

    def _drop(self) -> None:
        """Strips that nobody will take."""
        plan = self._plan
        for strip in list(plan.strips.values()):
            if strip.data is not None and not any(self._wants(rank, strip) for rank in plan.takers):
                del plan.strips[strip.place]
                self._tell()

    def _tell(self) -> None:
        """Whoever waits looks again."""
        for taker in self._plan.takers.values():
            taker.is_waiting = False
        self._changed.notify_all()

    def _n_bytes(self) -> int:
        return sum(strip.n_bytes for strip in self._plan.strips.values())


@dataclass(frozen=True)
class StripReader:
    """One rank's way to the strips; see ``Strips.reader``."""

    strips: Strips
    rank: Callable[[], int]
    check: Callable[[], None]

    def leave(self) -> None:
        """The rank needs no more."""
        self.strips.leave(self.rank())

    def pass_by(self, tensor: str) -> None:
        """Whole rows of this tensor are read."""
        self.strips.pass_by(self.rank(), tensor)

    def read(self, source: WholeRows, rows: Span, runs: Spans, out: _Bytes) -> None:
        """Fills ``out``, uint8 [rows.size, bytes], with these ranges of bytes of each of the rows; blocks.

        Raises:
            ModelFileError: the file cannot be read; and what ``check`` raises.
        """
        step, rank = max(1, self.strips.strip_bytes // source.row_bytes), self.rank()
        deadline_s = time.monotonic() + WAIT_LIMIT_S
        for start in range(rows.start // step * step, rows.stop, step):
            strip = Span(start, min(start + step, source.n_rows))
            here = Span(max(start, rows.start), min(strip.stop, rows.stop))
            data = self.strips.try_take(rank, source, strip, self.check, deadline_s)
            found = source.cut(here) if data is None else data[here.start - start : here.stop - start]
            gather(found, runs, out[here.start - rows.start : here.stop - rows.start])
            self.strips.advance(rank, source.tensor, here.stop)


def _needed_rows(block: Block, tensor: str, share: Share) -> Spans:
    """Of which rows of the tensor a rank needs some columns."""
    if share.is_empty:
        return ()
    extents = [slot.extent(share) for slot in block.slots if slot.tensor.name == tensor]
    if block.experts is not None and any(slot.tensor.name == tensor for slot in block.experts.slots):
        for expert in range(block.experts.n):
            columns = block.experts.columns(share, expert)
            slots = block.experts.slots_of(expert) if columns.size else ()
            extents += [slot.extent(Share((columns,))) for slot in slots if slot.tensor.name == tensor]
    rows = [span for extent in extents if total_size(extent.columns) for span in extent.rows]
    return joined(sorted(rows, key=lambda span: span.start))
