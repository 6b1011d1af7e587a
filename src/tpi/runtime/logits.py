"""Logits of sampled rows as far as somebody needs them: all of a row, or the best of every rank's slice. Pure numbers.

What a sampler needs of a row is far less than all of it: a rank sends the best of its slice, the logits of tokens that
were asked for by name, and the logarithm of the sum of all exponentials, from which any probability follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tpi.runtime.protocols import Float32Array

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What of every sampled row is wanted: the ``n_best`` highest logits of every rank's slice and those of the tokens
    ``ids``; 0 means all. ``is_exact`` False allows all of a row to come in 16 bits. Tokens from ``n_tokens`` on, where
    it is not 0, are none: some models have more rows than their tokenizer has words. ``is_streamed``: the residual
    stream that enters the head is wanted as well."""

    n_best: int = 0
    ids: tuple[int, ...] = ()
    is_exact: bool = True
    n_tokens: int = 0
    is_streamed: bool = False

    @property
    def is_all(self) -> bool:
        return self.n_best == 0


ALL = Wanted()

MAX_IDS = 1024
"""Tokens whose logits can be asked for by name; of more the whole row is asked for."""


def together(wanted: Sequence[Wanted]) -> Wanted:
    """What contains what each of ``wanted``, one or more, asks for."""
    first = wanted[0]
    if all(other == first for other in wanted):
        return first
    ids = sorted({token for some in wanted for token in some.ids})
    n_tokens = 0 if any(not some.n_tokens for some in wanted) else max(some.n_tokens for some in wanted)
    is_all = len(ids) > MAX_IDS or any(some.is_all for some in wanted)
    is_exact = not all(some.is_all and not some.is_exact for some in wanted)
    is_streamed = any(some.is_streamed for some in wanted)
    if is_all:
        return Wanted(is_exact=is_exact, n_tokens=n_tokens, is_streamed=is_streamed)
    return Wanted(max(some.n_best for some in wanted), tuple(ids), n_tokens=n_tokens, is_streamed=is_streamed)


@dataclass(frozen=True)
class Row:
    """One sampled row. ``ids`` are ascending and ``values`` (f32) belong to them; ``ids`` None: all tokens, in order.
    No other token's logit is above ``floor``. ``log_sum_exp`` is that of the whole row. ``stream``, f32 [n_embd], is
    the residual stream that has entered the head, if it was wanted."""

    values: Float32Array
    ids: Ids | None = None
    floor: float = -np.inf
    log_sum_exp: float = np.nan
    stream: Float32Array | None = None

    @property
    def is_all(self) -> bool:
        return self.ids is None

    def best(self) -> int:
        """The token with the highest logit; of equal ones the lowest."""
        index = int(np.argmax(self.values))
        return index if self.ids is None else int(self.ids[index])


@dataclass(frozen=True)
class Extract:
    """What a rank tells of one row of its slice: its best, ``ids`` ascending, and the logits of the tokens that were
    asked for, not a number where a token is in another slice."""

    ids: Ids
    values: Float32Array
    asked: Float32Array
    log_sum_exp: float
    is_whole: bool
    """The best are all of the slice."""


def extract(logits: Float32Array, first: int, wanted: Wanted) -> Extract:
    """Of ``logits``, f32 [n], of the tokens from ``first`` on."""
    if wanted.n_tokens:
        logits = logits[: max(0, wanted.n_tokens - first)]
    n_best = min(wanted.n_best, logits.size)
    indexes = highest(logits, n_best)
    asked = np.full(len(wanted.ids), np.nan, np.float32)
    for number, token in enumerate(wanted.ids):
        if first <= token < first + logits.size:
            asked[number] = logits[token - first]
    return Extract(indexes + first, logits[indexes], asked, log_sum_exp(logits), n_best == logits.size)


def join(extracts: Sequence[Extract], wanted: Wanted) -> Row:
    """The row that the ranks' ``extracts``, in the order of their slices, tell of."""
    ids = np.concatenate([part.ids for part in extracts])
    values = np.concatenate([part.values for part in extracts])
    floor = max((float(part.values.min()) for part in extracts if not part.is_whole), default=-np.inf)
    sums = np.array([part.log_sum_exp for part in extracts])
    if wanted.ids:
        asked = np.stack([part.asked for part in extracts])
        named, here = np.asarray(wanted.ids, np.int64), ~np.isnan(asked)
        found = here.any(axis=0) & ~np.isin(named, ids)
        ids = np.concatenate([ids, named[found]])
        values = np.concatenate([values, asked[here.argmax(axis=0), np.arange(named.size)][found]])
        ids, order = np.unique(ids, return_index=True)
        values = values[order]
    return Row(values, ids, floor, log_sum_exp(sums))


def log_sum_exp(values: npt.NDArray[np.floating]) -> float:
    """The logarithm of the sum of all exponentials; each is as exact as the values are, their sum is in float64."""
    highest_value = values.max(initial=-np.inf)
    if not np.isfinite(highest_value):
        return float(highest_value)
    exponentials = values - highest_value
    np.exp(exponentials, out=exponentials)
    return float(highest_value) + float(np.log(exponentials.sum(dtype=np.float64)))


def highest(values: npt.NDArray[np.floating], n_kept: int) -> Ids:
    """Indexes of the n highest values, ascending; of equal values the lower index stays."""
    if n_kept >= values.size:
        return np.arange(values.size)
    if n_kept == 1:
        return np.array([np.argmax(values)])
    threshold = np.partition(values, values.size - n_kept)[values.size - n_kept]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: n_kept - above.size]
    return np.sort(np.concatenate((above, equal)))
