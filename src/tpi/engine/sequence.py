"""One sequence of tokens in the KV cache: which are there already, and the passes that bring the next ones.

Token i of the sequence lies in cell i. Knows nothing of text. One thread.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from tpi.errors import UsageError
from tpi.model.spec import ModelSpec
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.logits import ALL, Row, Wanted
from tpi.runtime.passes import TILED_TOKENS, Pass, Run
from tpi.runtime.retention import Retention

_WORTH_KEEPING = 32
"""So many tokens that were computed again are worth a state that is kept."""


class PassRunner(Protocol):
    """What runs passes: a cluster of any size."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def n_cells(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def is_staged(self) -> bool: ...

    @property
    def epoch(self) -> int: ...

    @property
    def retention(self) -> Retention:
        """A new one, of a sequence of which nothing is kept yet."""

    def run(self, work: Pass) -> tuple[Row, ...]:
        """See ``cluster.cluster.Cluster.run``."""

    def rest(self) -> tuple[Row, ...]:
        """See ``cluster.cluster.Cluster.rest``."""


class TokenSequence:
    """The tokens whose keys and values are in the cache, kept from prompt to prompt."""

    def __init__(self, runner: PassRunner, table: EmbeddingTable) -> None:
        self._runner, self._table = runner, table
        self._tokens: list[int] = []
        self._n_passes = 0
        self._epoch, self._retention = runner.epoch, runner.retention
        self._mark = 0
        """After so many tokens the recurrent state is to be kept: others have begun alike up to there."""

    @property
    def n_free(self) -> int:
        """Cells that are left."""
        return self._runner.n_cells - len(self._tokens)

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Forgets all tokens but those that ``prompt`` begins with, its last one excluded, and of these what cannot be
        gone back to; returns how many are kept.

        Raises:
            UsageError: the prompt is empty, or longer than the context.
        """
        if not 1 <= len(prompt) < self._runner.n_cells:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens, from 1 to {self._runner.n_cells - 1} fit the context: "
                "shorten it or use a larger --context"
            )
        if self._epoch != self._runner.epoch:  # its ranks have forgotten everything
            self._tokens, self._epoch, self._retention = [], self._runner.epoch, self._runner.retention
        n_kept = 0
        for old, new in zip(self._tokens, prompt[:-1], strict=False):
            if old != new:
                break
            n_kept += 1
        resumed = self._retention.resume(n_kept)
        self._mark = n_kept if n_kept - resumed >= _WORTH_KEEPING else 0
        del self._tokens[resumed:]
        return resumed

    def prefill(self, tokens: Sequence[int], wanted: Wanted = ALL) -> Iterator[Row | None]:
        """Appends ``tokens`` in as few passes as ``max_tokens`` allows, or for ranks that are stages in as many as have
        64 tokens: None after each, and after the last what is wanted of the last token's logits. Passes are about equal
        if that gives each 64 tokens or more: then the logits do not depend on ``max_tokens``, which a short rest,
        computed by other and slower kernels, would change.

        Raises:
            TpiError: see ``PassRunner.run``.
        """
        n_before, chunks = max(0, self._mark - len(self._tokens)), list[Sequence[int]]()
        for run in (tokens[:n_before], tokens[n_before:]):
            chunks += _cut(run, self._runner.max_tokens, self._runner.is_staged) if run else []
        for number, chunk in enumerate(chunks, start=1):
            is_last = number == len(chunks)
            keep = is_last or len(self._tokens) + len(chunk) == self._mark
            rows = self.run(chunk, [len(chunk) - 1] if is_last else [], wanted, keep=keep)
            yield rows[0] if is_last else None

    def run(
        self, tokens: Sequence[int], sampled: Sequence[int], wanted: Wanted = ALL, *, keep: bool = False
    ) -> tuple[Row, ...]:
        """Appends ``tokens`` in one pass; gives what is wanted of the logits of the rows ``sampled``. ``keep``: the
        sequence can be cut back to here later, also where it has a recurrent state.

        Raises:
            TpiError: see ``PassRunner.run``; the sequence is then as before.
        """
        first, stop = len(self._tokens), len(self._tokens) + len(tokens)
        assert 0 < len(tokens) <= self._runner.max_tokens and stop <= self._runner.n_cells
        positions = np.arange(first, stop)
        self._n_passes += 1
        if first:
            self._retention.begin(first, stop)
        rows = self._runner.run(
            Pass(
                pass_id=self._n_passes,
                embeddings=self._table.rows(tokens),
                positions=positions.astype(np.int32),
                cells=positions.astype(np.int64),
                visible=np.arange(stop)[None, :] <= positions[:, None],
                sampled=np.asarray(sampled, dtype=np.int32),
                wanted=wanted,
                runs=(Run(0, len(tokens), keep),) if self._retention.keeps_states else (),
            )
        )
        if not first:  # in what may be another epoch
            self._retention = self._runner.retention
            self._retention.begin(0, stop)
        self._retention.end(stop, keep)
        self._tokens.extend(tokens)
        return rows

    def rest(self) -> Row:
        """All logits of the row that was sampled last; raises as ``run``."""
        return self._runner.rest()[0]


def _cut(tokens: Sequence[int], most: int, is_staged: bool = False) -> list[Sequence[int]]:
    n, n_passes = len(tokens), -(-len(tokens) // most)
    if is_staged:
        n_passes = max(n_passes, n // TILED_TOKENS)
    if n < TILED_TOKENS * n_passes:
        return [tokens[start : start + most] for start in range(0, n, most)]
    return [tokens[n * number // n_passes : n * (number + 1) // n_passes] for number in range(n_passes)]
