"""Sequences of tokens in what ranks keep: which of their tokens are computed, in which cells, and where others go on.

Knows nothing of text, nor of who wants what. One thread.
"""

from collections import abc
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.engine.cells import CellBlock, CellPool
from tpi.engine.pinned import Pinned
from tpi.engine.prefixes import KeptPrefix, Prefixes
from tpi.engine.runner import PassRunner
from tpi.engine.seats import Seat, Seats
from tpi.errors import ContextError, UsageError
from tpi.runtime.passes import BLOCK_CELLS, MAX_COPIES, CellCopy, Copies

Tokens: TypeAlias = abc.Sequence[int]

_WORTH_KEEPING = 32
"""So many tokens that were computed again are worth a state that is kept."""


@dataclass(eq=False)
class Sequence:
    """One caller's tokens, at most ``n_most``. ``n_reserved``: room for so many is kept; ``marks``: after so many the
    recurrent states are to be kept."""

    seat: Seat
    tokens: list[int]
    """Those that are computed."""
    blocks: list[CellBlock]
    n_cached: int
    """So many were computed before it began."""
    n_most: int
    n_reserved: int
    marks: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        return self.seat.number

    @property
    def cells(self) -> npt.NDArray[np.int64]:
        """Where the tokens lie, in the order of their positions, and those to come as far as there is room."""
        starts = np.array([block.first for block in self.blocks], np.int64)
        return (starts[:, None] + np.arange(BLOCK_CELLS)).ravel()

    @property
    def n_to_mark(self) -> int:
        """How many tokens there are up to the next mark, 0 if there is none."""
        return next((mark - len(self.tokens) for mark in self.marks if mark > len(self.tokens)), 0)

    @property
    def n_left(self) -> int:
        """How many more tokens it can have."""
        return self.n_most - len(self.tokens)

    @property
    def n_room(self) -> int:
        """How many more tokens its blocks have room for."""
        return len(self.blocks) * BLOCK_CELLS - len(self.tokens)


class Sequences:
    """All of them, and what is left of those that have ended."""

    def __init__(self, runner: PassRunner, *, keeps_ended: bool) -> None:
        """``keeps_ended``: what nobody uses stays as long as there is room, for whoever begins alike. Otherwise it goes
        when the next one begins, but for what that one begins with."""
        self._runner, self._keeps_ended = runner, keeps_ended
        self._live: list[Sequence] = []
        self._pinned = Pinned()
        self._forget()

    @property
    def stop_cell(self) -> int:
        """Behind the last cell that holds anything."""
        return self._pool.stop

    @property
    def are_bound(self) -> bool:
        """Passes have to say whose rows they have: not all is kept in cells."""
        return self._retention.is_bound

    def prepare(self) -> None:
        """To be called before anything else of a step: after ranks have forgotten everything, so have we. Live
        sequences are empty then."""
        self._runner.prepare()
        if self._n_forgotten != self._runner.n_forgotten:
            self._forget()

    def pin(self, tokens: Tokens) -> None:
        """The whole blocks of a text's beginning: once a sequence has computed them, they stay, whoever needs room. So
        does what ranks keep beside cells after them, at a seat more than there are callers.

        Raises:
            UsageError: that is no block, or leaves none for others.
        """
        self._pinned = Pinned.of(tokens, self._runner.n_cells)
        self._reserve_seat()

    def pin_again(self, tokens: Tokens) -> None:
        """Those instead, in no more cells; not if that is no block. No sequence may live that needs more than the
        others."""
        pinned = self._pinned.again(tokens)
        if pinned.tokens not in ((), self._pinned.tokens):
            for block in reversed(self._pinned.blocks):
                self._leave(block)
            self._pinned = pinned

    @property
    def pinned(self) -> tuple[int, ...]:
        """The tokens that are pinned, or will be."""
        return self._pinned.tokens

    @property
    def n_pinned(self) -> int:
        """Cells that are not for others."""
        return self._pinned.n_cells

    def begin(
        self, prompt: Tokens, marks: abc.Sequence[int] = (), seat_number: int | None = None, *, is_new: bool = False
    ) -> Sequence | None:
        """A sequence of the longest beginning of ``prompt``, its last token excluded, that needs not be computed again;
        None while there is no seat or no room for all of it. After ``marks`` tokens others are expected to go on. It
        gets the seat of ``seat_number``, if that is free; if it ``is_new``, all of it is computed. ``prompt`` has one
        token at least, and none more than the context."""
        n_most = self._most_of(prompt, is_new=is_new)
        assert 1 <= len(prompt) <= n_most, "whoever asks has checked it"
        if self._seats.are_taken:
            return None
        path, n_found = self._pool.find(() if is_new else prompt[:-1])
        source = self._seats.find(prompt[:n_found])
        n_resumed = source.n_resumed
        path, n_tail = _cut_path(path, n_resumed)
        for block in path:
            self._pool.use(block)
        if not self._keeps_ended:
            self._pool.drop_unused()
        n_reserved = min(len(prompt) + 1, n_most)
        n_needed = n_reserved - len(path) * BLOCK_CELLS
        is_copied = n_tail > 0 and path[-1].n_users > 1
        n_missing = self.n_missing
        if n_needed + (BLOCK_CELLS if is_copied else 0) > self._pool.n_available - n_missing:
            for block in reversed(path):
                self._pool.leave(block)
            return None
        seat = self._seats.take(source, seat_number)
        seat.tokens = list(prompt[:n_resumed])
        sequence = Sequence(seat, seat.tokens, path, n_resumed, n_most, n_reserved)
        found = (*marks, *([source.n_alike] if source.n_alike - n_resumed >= _WORTH_KEEPING else []))
        found += (len(self.pinned),) if self._pinned.is_awaited and self._pinned.begins(prompt) else ()
        sequence.marks = tuple(sorted({mark for mark in found if mark < len(prompt)}))
        if n_tail:
            self._own_tail(sequence, n_tail, n_needed + n_missing)
        self._live.append(sequence)
        return sequence

    def check_length(self, prompt: Tokens, *, is_new: bool = False) -> None:
        """Whether there can be an answer to it, where all of it is computed if it ``is_new``.

        Raises:
            UsageError: the prompt is empty.
            ContextError: it leaves no room for a token more.
        """
        most = self._most_of(prompt, is_new=is_new) - 1
        if not prompt:
            raise UsageError("the prompt is empty: there is nothing to answer")
        if len(prompt) > most:
            remedy = "" if most + 1 >= self._runner.spec.n_context_train else " or serve it with a longer context"
            raise ContextError(
                f"the prompt has {len(prompt)} tokens, {len(prompt) - most} more than the {most} that fit the context: "
                f"shorten it{remedy}",
                len(prompt) - most,
            )

    def mark(self, sequence: Sequence, n_tokens: int) -> None:
        """Others are expected to go on after its first ``n_tokens``, which are to come."""
        if self._retention.keeps_states:
            sequence.marks = tuple(sorted({*sequence.marks, n_tokens}))

    def make_room(self, sequence: Sequence, n_tokens: int) -> int:
        """For how many of the next ``n_tokens`` there is room."""
        while sequence.n_room < n_tokens:
            block = self._pool.take(sequence.blocks[-1] if sequence.blocks else None)
            if block is None:
                break
            sequence.blocks.append(block)
        return min(n_tokens, sequence.n_room)

    @property
    def prefixes(self) -> Prefixes:
        """What there is apart from those that live. To be asked for after ``prepare``, and used at once."""
        return Prefixes(self._pool, self._seats, self._retention)

    def check_room(self, kept: KeptPrefix) -> None:
        """Whether a text that was computed elsewhere can have its place here, once nobody else needs it.

        Raises:
            ContextError: it is longer than that.
            UsageError: there are no such states.
        """
        n_tokens, n_most = len(kept.tokens), self._most_of(kept.tokens, is_new=False)
        if not self._retention.can_place(kept.beside, n_tokens):
            raise UsageError(f"the saved text has {len(kept.beside.marks)} states that none has here: save it again")
        if (n_over := n_tokens - n_most) > 0:
            raise ContextError(
                f"the saved text has {n_tokens} tokens, {n_over} more than the {n_most} that fit the context: serve "
                "with a longer context",
                n_over,
            )

    @property
    def n_missing(self) -> int:
        """Cells of the pool that those that live have still to get for what is reserved for them."""
        return sum(map(_n_missing, self._live))

    @property
    def copies(self) -> Copies:
        """What ranks have to copy before the next pass that holds."""
        cells = (CellCopy(copy.source.first, copy.target.first, copy.n_cells) for copy in self._copies)
        return Copies(tuple(cells), tuple(self._seats.copies))

    @property
    def can_stop(self) -> bool:
        """Whether a pass can be stopped: what it has to copy comes again with the next one, which has copies of its
        own, and there is room for so many."""
        n_copies = max(len(self._copies), len(self._seats.copies))
        return n_copies + self._runner.n_sequences <= MAX_COPIES

    def copied(self) -> None:
        """A pass holds that began with all of them."""
        self._let_go_copies()
        self._seats.copies.clear()

    def drop_copies(self) -> None:
        """Cells need not be copied, since there is no sequence left: they are free for those that wait."""
        assert not self._live
        for copy in self._let_go_copies():
            self._pool.drop_unused_from(copy.target)

    def start(self, sequence: Sequence, n_tokens: int) -> None:
        """The next ``n_tokens`` are about to be computed."""
        first = len(sequence.tokens)
        self._retention.begin(sequence.number, first, first + n_tokens)

    def done(self, sequence: Sequence, tokens: Tokens, *, keep: bool) -> None:
        """They are."""
        self._append(sequence, tokens)
        self._retention.end(sequence.number, len(sequence.tokens), keep)
        self._try_pin(sequence)

    def cut_back(self, sequence: Sequence, n_tokens: int) -> int:
        """Forgets all but the first ``n_tokens``, and of these what cannot be gone back to; returns how many are
        left. There must be a free block if another sequence has the same tokens."""
        n_left = self._retention.resume(sequence.number, min(n_tokens, len(sequence.tokens)))
        path, n_tail = _cut_path(sequence.blocks, n_left)
        for block in reversed(sequence.blocks[len(path) :]):
            self._leave(block)
        del sequence.tokens[n_left:]
        sequence.blocks = path
        if n_tail:
            self._own_tail(sequence, n_tail, 0)
        return n_left

    def fork(self, sequence: Sequence) -> Sequence | None:
        """Another sequence of the same tokens; None while there is no seat or no room."""
        return self.begin([*sequence.tokens, -1])

    def end(self, sequence: Sequence) -> None:
        """Nothing will be added to it; its seat and its cells are free for others. Idempotent."""
        if sequence not in self._live:
            return
        self._live.remove(sequence)
        self._seats.leave(sequence.seat)
        for block in reversed(sequence.blocks):
            self._leave(block)
        sequence.blocks = []

    def _forget(self) -> None:
        runner = self._runner
        self._n_forgotten, self._retention = runner.n_forgotten, runner.retention
        self._pool, self._copies = CellPool(runner.n_cells), list[_Copy]()
        self._seats = Seats(runner.n_sequences, self._retention)
        self._reserve_seat()
        for sequence in self._live:
            sequence.seat, sequence.tokens, sequence.blocks = self._seats.take(), [], []
            sequence.n_cached, sequence.seat.tokens = 0, sequence.tokens

    def _most_of(self, prompt: Tokens, *, is_new: bool) -> int:
        """How many tokens a sequence can have that begins so. Who does not begin with what is pinned, or does not go on
        there, has less room."""
        n_context, n_others = self._runner.n_context, self._runner.n_cells - self.n_pinned
        goes_on = not is_new and self._pinned.begins(prompt)
        return n_context if n_context <= n_others or goes_on else n_others

    def _reserve_seat(self) -> None:
        """Nobody has computed what is pinned."""
        self._pinned.blocks, self._pinned.seat = (), None
        if self._pinned.tokens and self._retention.is_bound:
            self._pinned.seat = self._seats.reserve()

    def _try_pin(self, sequence: Sequence) -> None:
        """What is pinned is there if a sequence has got just so far, or farther where no seat has to be copied."""
        pinned, n_pinned, n_tokens = self._pinned, len(self.pinned), len(sequence.tokens)
        if not pinned.is_awaited or n_tokens < n_pinned or tuple(sequence.tokens[:n_pinned]) != pinned.tokens:
            return
        if pinned.seat is not None:
            if n_tokens > n_pinned:
                return
            pinned.seat.tokens = list(pinned.tokens)
            self._seats.copy(sequence.seat, pinned.seat, n_pinned)
        pinned.blocks = tuple(sequence.blocks[: n_pinned // BLOCK_CELLS])
        for block in pinned.blocks:
            self._pool.use(block)

    def _own_tail(self, sequence: Sequence, n_tokens: int, n_needed: int) -> None:
        """Makes the last block of a sequence its own, with the first tokens only: that block itself if nobody else uses
        it and nothing is lost by that, or there is no other for the ``n_needed`` cells to come; otherwise a copy."""
        tail = sequence.blocks[-1]
        is_spare = len(tail.tokens) == n_tokens or not self._keeps_ended
        if tail.n_users == 1 and (is_spare or self._pool.n_available < n_needed + BLOCK_CELLS):
            self._pool.cut(tail, n_tokens)
            return
        sequence.blocks.pop()
        block = self._pool.take(sequence.blocks[-1] if sequence.blocks else None)
        assert block is not None, "there is room for the whole prompt"
        block.tokens = tail.tokens[:n_tokens]
        sequence.blocks.append(block)
        self._pool.use(block)
        self._copies.append(_Copy(tail, block, n_tokens))

    def _append(self, sequence: Sequence, tokens: Tokens) -> None:
        position = len(sequence.tokens)
        sequence.tokens.extend(tokens)
        for index in range(position // BLOCK_CELLS, -(-len(sequence.tokens) // BLOCK_CELLS)):
            start = max(position, index * BLOCK_CELLS)
            sequence.blocks[index].tokens += sequence.tokens[start : (index + 1) * BLOCK_CELLS]

    def _let_go_copies(self) -> "list[_Copy]":
        copies, self._copies = self._copies, []
        for copy in copies:
            self._pool.leave(copy.source)
            self._pool.leave(copy.target)
        return copies

    def _leave(self, block: CellBlock) -> None:
        self._pool.leave(block)
        if not block.n_users and not block.children and not block.tokens:
            self._pool.drop(block)


@dataclass(frozen=True)
class _Copy:
    """Of the first cells of a block to another; both stay, with one more user, until it is made."""

    source: CellBlock
    target: CellBlock
    n_cells: int


def _n_missing(sequence: Sequence) -> int:
    """Cells of blocks that a sequence has still to get for what is reserved for it."""
    n_blocks = -(-sequence.n_reserved // BLOCK_CELLS)
    return max(0, n_blocks - len(sequence.blocks)) * BLOCK_CELLS


def _cut_path(path: abc.Sequence[CellBlock], n_tokens: int) -> tuple[list[CellBlock], int]:
    """The blocks that hold the first tokens of a path; and how many of them the last block holds, if it has room for
    more, or holds others."""
    return list(path[: -(-n_tokens // BLOCK_CELLS)]), n_tokens % BLOCK_CELLS
