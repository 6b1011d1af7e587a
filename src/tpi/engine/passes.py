"""Runs passes of the next tokens of some sequences: their embeddings, positions, cells and mask, and what of the logits
is wanted by all of them together. One thread."""

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tpi.engine.runner import PassRunner
from tpi.engine.sequences import Sequence, Sequences, Tokens
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.logits import ALL, Row, Wanted, together
from tpi.runtime.passes import Pass, Run


@dataclass(frozen=True)
class Rows:
    """The next tokens of one sequence; ``wanted`` of the last one's logits, None: nothing. ``keep``: the sequence can
    be cut back to here later, also where it has a recurrent state."""

    sequence: Sequence
    tokens: Tokens
    wanted: Wanted | None = ALL
    keep: bool = False
    is_each_wanted: bool = False
    """It is wanted of all of them, not of the last one alone."""

    @property
    def n_wanted(self) -> int:
        """Rows that are sampled."""
        return 0 if self.wanted is None else len(self.tokens) if self.is_each_wanted else 1


class Passes:
    """The parts belong to the caller."""

    def __init__(self, runner: PassRunner, sequences: Sequences, table: EmbeddingTable) -> None:
        self._runner, self._sequences, self._table = runner, sequences, table
        self.next_pass = 1
        """The number that the next pass will have."""

    def run(self, batch: abc.Sequence[Rows], meanwhile: Callable[[], None] = lambda: None) -> tuple[Row, ...]:
        """Computes the tokens of ``batch``, for which there is room; gives the rows of logits that are wanted, in their
        order. ``meanwhile`` is called when nothing is left to do but to compute.

        Raises:
            TpiError: see ``PassRunner.run``; no sequence has advanced, and copies will be asked for again.
        """
        work = self._build(batch)
        for rows in batch:
            self._sequences.start(rows.sequence, len(rows.tokens))
        meanwhile()
        result = self._runner.run(work)
        self._sequences.copied()
        for rows in batch:
            self._sequences.done(rows.sequence, rows.tokens, keep=rows.keep)
        return result

    def _together(self, wanted: abc.Sequence[Wanted]) -> Wanted:
        """Where nothing may depend on the others, whole rows: how a row's exponentials are summed goes by what is
        told of it."""
        if not wanted:
            return ALL
        all_of_it = together(wanted)
        return replace(all_of_it, n_best=0, ids=(), is_exact=True) if self._runner.is_reproducible else all_of_it

    def _build(self, batch: abc.Sequence[Rows]) -> Pass:
        number, self.next_pass = self.next_pass, self.next_pass + 1
        n_seen = self._sequences.stop_cell
        n_tokens = sum(len(rows.tokens) for rows in batch)
        positions, cells = np.empty(n_tokens, np.int32), np.empty(n_tokens, np.int64)
        visible: npt.NDArray[np.bool_] = np.zeros((n_tokens, n_seen), np.bool_)
        sampled, start = list[int](), 0
        for rows in batch:
            n, first = len(rows.tokens), len(rows.sequence.tokens)
            stop = start + n
            own = rows.sequence.cells[: first + n]
            positions[start:stop] = np.arange(first, first + n)
            cells[start:stop] = own[first:]
            visible[start:stop, own[:first]] = True
            visible[start:stop, own[first:]] = np.tri(n, dtype=np.bool_)
            sampled += range(stop - rows.n_wanted, stop)
            start = stop
        wanted = [rows.wanted for rows in batch if rows.wanted is not None]
        runs = tuple(Run(rows.sequence.number, len(rows.tokens), rows.keep) for rows in batch)
        return Pass(
            pass_id=number,
            embeddings=self._table.rows([token for rows in batch for token in rows.tokens]),
            positions=positions,
            cells=cells,
            visible=visible,
            sampled=np.asarray(sampled, np.int32),
            wanted=self._together(wanted),
            runs=runs if self._sequences.are_bound or len(runs) > 1 else (),
            copies=self._sequences.copies,
        )
