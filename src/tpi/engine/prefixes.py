"""Beginnings of texts in what ranks keep, apart from any answer: which there are, and how another gets its place.

A slot is a seat: it has the text of the last sequence that sat there. One thread.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tpi.engine.cells import CellBlock, CellPool
from tpi.engine.seats import Seat, Seats
from tpi.errors import BusyError
from tpi.runtime.passes import BLOCK_CELLS
from tpi.runtime.retention import KeptBeside, Retention


@dataclass(frozen=True)
class KeptPrefix:
    """Tokens that are computed, the first cells of their blocks, and what is kept beside cells."""

    tokens: tuple[int, ...]
    cells: tuple[int, ...]
    beside: KeptBeside


@dataclass(frozen=True)
class Place:
    """Where a prefix is to be: the first cells of its blocks, of which those of the first ``n_present`` tokens have
    what belongs there."""

    cells: tuple[int, ...]
    n_present: int


class Prefixes:
    """The parts are those of all sequences."""

    def __init__(self, pool: CellPool, seats: Seats, retention: Retention) -> None:
        self._pool, self._seats, self._retention = pool, seats, retention

    def kept(self, slot: int) -> KeptPrefix:
        """What is there of the slot's text.

        Raises:
            BusyError: it is being answered.
        """
        seat = self._free(slot)
        path, n_found = self._pool.find(seat.tokens)
        n_tokens = self._retention.resume(slot, n_found) if self._retention.is_bound else n_found
        cells = tuple(block.first for block in path[: -(-n_tokens // BLOCK_CELLS)])
        return KeptPrefix(tuple(seat.tokens[:n_tokens]), cells, self._retention.prefix(slot, n_tokens))

    @contextmanager
    def placing(self, slot: int, kept: KeptPrefix, n_reserved: int) -> Iterator[Place]:
        """Around the work of filling the place of a prefix, whose cells are of no interest: afterwards it is the slot's
        text, and others can go on there; if it fails, the slot has none. ``n_reserved`` cells are for others.

        Raises:
            BusyError: the slot is being answered, or there is no room.
        """
        seat, tokens = self._free(slot), kept.tokens
        path, n_found = self._pool.find(tokens)
        n_present = n_found // BLOCK_CELLS * BLOCK_CELLS
        path = path[: n_present // BLOCK_CELLS]
        for block in path:
            self._pool.use(block)
        try:
            n_needed = -(-(len(tokens) - n_present) // BLOCK_CELLS) * BLOCK_CELLS
            if n_needed > self._pool.n_available - n_reserved:
                raise BusyError(f"there is no room for {n_needed} cells beside the answers under way: try again later")
            while len(path) * BLOCK_CELLS < len(tokens):
                taken = self._pool.take(path[-1] if path else None)
                assert taken is not None, "there is room"
                path.append(taken)
            seat.tokens = []
            yield Place(tuple(block.first for block in path), n_present)
            for number, block in enumerate(path):
                block.tokens = block.tokens or list(tokens[number * BLOCK_CELLS : (number + 1) * BLOCK_CELLS])
            seat.tokens = list(tokens)
            self._retention.place(slot, kept.beside)
            self._seats.leave(seat)  # it was used just now
        finally:
            self._leave(path)

    def erase(self, slot: int) -> int:
        """Forgets the slot's text, and what begins like it, but for what others use and other slots' texts; how many
        tokens of it there were.

        Raises:
            BusyError: it is being answered.
        """
        seat, kept = self._free(slot), self.kept(slot)
        erased, seat.tokens = seat.tokens, []
        named = {block.first for text in self._seats.texts for block in self._pool.find(text)[0]}
        self._pool.drop_unused_like(erased, named)
        return len(kept.tokens)

    def _free(self, slot: int) -> Seat:
        seat = self._seats.find_number(slot)
        if seat.is_taken:
            raise BusyError(f"slot {slot} is being answered: try again later")
        return seat

    def _leave(self, path: Sequence[CellBlock]) -> None:
        for block in reversed(path):
            self._pool.leave(block)
            if not block.n_users and not block.children and not block.tokens:
                self._pool.drop(block)
