"""Ranks that compute nothing, but keep what real ones keep: which token lies in which cell, what a window's ring holds,
after which tokens a state was written. What a row's logits are follows from what the row sees. Called by tests only."""

import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tpi.engine.runner import PassRunner
from tpi.errors import Cancelled
from tpi.model.blocks import Block
from tpi.model.spec import ModelSpec
from tpi.model.states import KvState, RecurrentState
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.ledger import Ledger
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass
from tpi.runtime.rankmodel import RankSettings
from tpi.runtime.recurrent import StateSlots
from tpi.runtime.retention import Retention
from tpi.runtime.sights import starts_of

N_TOKENS = 320
N_KEPT = 2
NOTHING = (-1, -1)
Stop: TypeAlias = Literal["before", "in the middle", "after"] | None
"""Where a rank is when a pass is stopped: it has not begun, it has written what it writes, or it is through."""


class FakeTable:
    """Rows that hold their token."""

    def rows(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.asarray(tokens, np.float32)[:, None]


class FakeRanks:
    """Satisfies ``engine.runner.PassRunner``. ``window``: some layers see so many positions; ``is_recurrent``: some
    have a state."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        n_cells: int = 256,
        max_tokens: int = 16,
        n_sequences: int = 4,
        window: int = 0,
        is_recurrent: bool = False,
    ) -> None:
        self.spec, self.n_cells, self.max_tokens, self.n_sequences = spec, n_cells, max_tokens, n_sequences
        self.n_context = n_cells - 7
        self.max_sampled, self.is_staged, self.n_forgotten = max(8, n_sequences), False, 0
        self.is_reproducible = False
        self.passes: list[Pass] = []
        states: list[KvState | RecurrentState] = [KvState(64, 1, 64)]
        if window:
            states.append(KvState(64, 1, 64, window))
        if is_recurrent:
            states.append(RecurrentState((1,), (0,), 1))
        self._blocks = cast(Sequence[Block], [SimpleNamespace(state=state) for state in states])
        self._settings = RankSettings(max_tokens, n_cells, 1, n_sequences=n_sequences, n_kept_states=N_KEPT)
        self._window, self._is_recurrent = window, is_recurrent
        self._last_pass = 0
        self.cancelled: list[int] = []
        self.before_pass: Callable[[Pass], Stop] = lambda work: None
        """Says where the pass is stopped."""
        self.forget()

    @property
    def table(self) -> EmbeddingTable:
        return cast(EmbeddingTable, FakeTable())

    @property
    def as_runner(self) -> PassRunner:
        return self

    @property
    def retention(self) -> Retention:
        return Retention(self._blocks, self._settings)

    def forget(self) -> None:
        """What an epoch does that does not go on with the one before."""
        self.n_forgotten += 1
        self._cells = [NOTHING] * self.n_cells
        self._rings: dict[int, dict[int, tuple[int, int]]] = {}
        self._slots = StateSlots(self.n_sequences, N_KEPT)
        self._ledger = Ledger(self._slots if self._is_recurrent else None)
        self._states: dict[int, tuple[int, ...]] = {0: ()}
        self._last_pass = 0

    def check_alive(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def cancel(self, pass_id: int) -> None:
        self.cancelled.append(pass_id)

    def run(self, work: Pass) -> tuple[Row, ...]:
        stop = self.before_pass(work)
        if stop != "before":
            self._run(work, stop == "in the middle")
        if stop is not None:
            self._ledger.resume(self._last_pass)
            raise Cancelled("the pass was stopped")
        self._last_pass = work.pass_id
        return tuple(Row(logits, stream=logits) for logits in self._last)

    def _run(self, work: Pass, is_stopped: bool) -> None:
        self.passes.append(work)
        assert work.embeddings is not None and work.n_tokens <= self.max_tokens
        assert len(work.sampled) <= self.max_sampled
        assert int(work.cells.max()) < work.n_seen <= self.n_cells
        self._ledger.settle()
        self._cells[work.n_seen :] = [NOTHING] * (self.n_cells - work.n_seen)
        self._copy(work)
        tokens = [int(token) for token in work.embeddings[:, 0]]
        for row, token in enumerate(tokens):
            self._cells[work.cells[row]] = token, int(work.positions[row])
        texts = [self._seen(work, row) for row in range(work.n_tokens)]
        if work.runs:
            self._check_kept(work, tokens, texts)
        if is_stopped:
            for cell in work.cells:
                self._cells[cell] = NOTHING
            return
        self._ledger.end(work)
        self._last = [logits_after(texts[row]) for row in work.sampled]

    def rest(self) -> tuple[Row, ...]:
        return tuple(Row(logits) for logits in self._last)

    def _seen(self, work: Pass, row: int) -> tuple[int, ...]:
        """The text that attention of the row sees, from its beginning."""
        seen = sorted(self._cells[cell][::-1] for cell in np.flatnonzero(work.visible[row]))
        assert [position for position, _ in seen] == list(range(work.positions[row] + 1)), "every position once"
        return tuple(token for _, token in seen)

    def _copy(self, work: Pass) -> None:
        for cell in work.copies.cells:
            found = self._cells[cell.source : cell.source + cell.n_cells]
            self._cells[cell.target : cell.target + cell.n_cells] = found
        for copy in self._ledger.to_copy(work.copies):
            self._rings[copy.target] = dict(self._rings.get(copy.source, {}))
            if self._is_recurrent:
                source, target = self._slots.copy(copy.source, copy.target, copy.n_tokens)
                self._states[target] = self._states[source]

    def _check_kept(self, work: Pass, tokens: Sequence[int], texts: Sequence[tuple[int, ...]]) -> None:
        """Windows and states hold the same text."""
        ring_cells = self._settings.ring_cells(self._window)
        for start, run in starts_of(work.runs):
            first, stop = int(work.positions[start]), int(work.positions[start]) + run.n_tokens
            if self._window:
                ring = self._rings.setdefault(run.sequence, {})
                for position in range(first, stop):
                    ring[position % ring_cells] = tokens[start + position - first], position
                for row in range(start, start + run.n_tokens):
                    for position in range(max(0, int(work.positions[row]) + 1 - self._window), work.positions[row] + 1):
                        assert ring[position % ring_cells] == (texts[row][position], position)
            if self._is_recurrent:
                source, target = self._slots.begin(run.sequence, first)
                self._states[target] = self._states[source] + tuple(tokens[start : start + run.n_tokens])
                assert self._states[target] == texts[start + run.n_tokens - 1]


def logits_after(text: Sequence[int]) -> npt.NDArray[np.float32]:
    """Any text has some, and only the same text the same; the tokens that end an answer are unlikely."""
    seed = zlib.crc32(np.asarray(text, np.int64).tobytes())
    logits = np.random.default_rng(seed).normal(scale=4, size=N_TOKENS).astype(np.float32)
    logits[:3] = -30
    return logits


def kinds() -> dict[str, dict[str, Any]]:
    """What ranks can have to keep."""
    return {
        "cells": {},
        "windows": {"window": 20},
        "states": {"is_recurrent": True},
        "windows and states": {"window": 20, "is_recurrent": True},
    }
