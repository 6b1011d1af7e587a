"""When query heads that share a KV head are rows of one: a kernel reads a head's keys once for up to 64 rows, if there
are so many; else once for every row and head."""

from collections.abc import Sequence

from tpi.gguf.types import F16, F32
from tpi.runtime.passes import TILED_TOKENS
from tpi.runtime.rankmodel import Attention, RankSettings

_CHUNKS = 4
"""In so many parts for each thread a kernel's rows are handed out."""
_LEAST_ROWS = 16
"""Rows of a tile from which on it pays: one takes as long as about ten rows for themselves, however few it has."""
_MOST_MASKED = 2 << 20
"""Values of a mask that rows of folded heads may have, where those of a pass have fewer."""


def fold_of(attentions: Sequence[Attention], settings: RankSettings, n_sequences: int, n_rows: int) -> int:
    """How many heads become rows of one, where each of ``n_sequences`` has ``n_rows``; 1: none."""
    fold = largest_fold(attentions, settings)
    n_folded = fold * n_rows
    if fold == 1 or n_rows >= TILED_TOKENS or (n_folded < TILED_TOKENS and n_sequences > 1):
        return 1
    if rows_of(n_rows, fold) > fold * most_folded(settings):
        return 1
    n_heads = min(attention.n_heads for attention in attentions) // fold * n_sequences
    n_tiles = max(_CHUNKS * settings.n_threads, n_heads * -(-n_folded // TILED_TOKENS))
    return fold if n_heads * n_folded >= _LEAST_ROWS * n_tiles else 1


def largest_fold(attentions: Sequence[Attention], settings: RankSettings) -> int:
    """How many heads can be rows of one, in all blocks: they have a mask in common."""
    folds = {attention.n_sharing for attention in attentions}
    if len(folds) != 1 or settings.is_reproducible or settings.kv_type not in (F16, F32):
        return 1
    return folds.pop()


def most_folded(settings: RankSettings) -> int:
    """Rows that may be folded: more are enough as they are."""
    return min(TILED_TOKENS - 1, settings.part_tokens)


def masked_values(attentions: Sequence[Attention], settings: RankSettings, n_cells: int) -> int:
    """Room for masks over ``n_cells``."""
    fold = largest_fold(attentions, settings)
    n_folded = fold * most_folded(settings) if fold > 1 else 0
    return max(settings.max_tokens * n_cells, min(n_folded * n_cells, _MOST_MASKED))


def rows_of(n_rows: int, fold: int) -> int:
    """What a kernel is given of one head: as many as it needs to read tiles."""
    return n_rows if fold == 1 else max(TILED_TOKENS, fold * n_rows)
