"""How many cells the sequences of an epoch have together: as was said, or as many as every rank has memory for.

Pure arithmetic, but for counting what a rank's parts take.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tpi.cluster.control.messages import MAX_CELLS
from tpi.cluster.epoch.footprint import Claim
from tpi.config import AUTO, DEFAULT_CONTEXT, ContextSize
from tpi.errors import KernelError, MemoryBudgetError, UsageError
from tpi.model.spec import ModelSpec
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.kvcache import bytes_for
from tpi.runtime.passes import BLOCK_CELLS, TILED_TOKENS
from tpi.runtime.rankmodel import RankSettings


def n_cells_of(context: ContextSize, spec: ModelSpec, n_sequences: int = 1) -> int:
    """Cells for a context of so many tokens, None meaning the default; ``AUTO``: the most that are of any use to so
    many sequences.

    Raises:
        UsageError: so many sequences of this model cannot fill so many.
    """
    trained = spec.n_context_train
    limit = min(trained * n_sequences, MAX_CELLS)
    if context == AUTO:
        return _round_up(limit)
    wanted = min(DEFAULT_CONTEXT, trained) if context is None else context
    if not 1 <= wanted <= limit:
        together = f", {n_sequences} sequences of it have {limit} together" if n_sequences > 1 else ""
        raise UsageError(
            f"a context of {wanted} cannot be: {spec.name} was trained for 1 to {min(trained, limit)} tokens{together}"
        )
    return _round_up(wanted)


def most_cells(claims: Sequence[Claim], settings: RankSettings, usual: int, repacker: Repacker | None = None) -> int:
    """The most cells, up to those of ``settings``, with which every rank has room for the window that its weights
    should have beside the ``usual`` ones; or, where these are fewer than those, up to so many with which it has room at
    all, in shorter passes. At least one block: that this is too much has to be said by the ranks."""
    usual = min(usual, settings.n_cells)
    rooms = _Rooms(settings, usual, repacker)
    n_cells = rooms.most_cells(claims, settings.n_cells, is_tight=False)
    if n_cells < usual:
        n_cells = rooms.most_cells(claims, usual, is_tight=True)
    return max(n_cells, BLOCK_CELLS)


def most_possible(n_cells: int, is_possible: Callable[[int], bool]) -> int:
    """The most cells, in whole blocks, up to ``n_cells``, that are possible, as all fewer ones are then; 0: none."""
    if n_cells and is_possible(n_cells):
        return n_cells
    blocks = range(1, n_cells // BLOCK_CELLS)
    return bisect_left(blocks, True, key=lambda n_blocks: not is_possible(n_blocks * BLOCK_CELLS)) * BLOCK_CELLS


@dataclass(frozen=True)
class _Rooms:
    """What ranks have room for, with these settings but for the number of cells, of which so many are ``usual``."""

    settings: RankSettings
    usual: int
    repacker: Repacker | None

    def most_cells(self, claims: Iterable[Claim], n_most: int, *, is_tight: bool) -> int:
        for claim in claims:
            wanted_bytes = claim.sizes.minimum_bytes if is_tight else self._wanted_bytes(claim)
            n_most = most_possible(n_most, partial(self._has_room, claim, wanted_bytes, is_tight))
        return n_most

    def _wanted_bytes(self, claim: Claim) -> int:
        return claim.wanted_window_bytes(self._room_bytes(claim, self.usual, self.settings.max_tokens))

    def _has_room(self, claim: Claim, wanted_bytes: int, is_tight: bool, n_cells: int) -> bool:
        n_tokens = TILED_TOKENS if is_tight else self.settings.max_tokens
        return self._room_bytes(claim, n_cells, n_tokens) >= wanted_bytes

    def _room_bytes(self, claim: Claim, n_cells: int, n_tokens: int) -> int:
        """What is left for the window beside so many cells, in passes of at most so many tokens; less than it needs
        where the system has no addresses to count that."""
        settings = replace(self.settings, n_cells=n_cells, max_tokens=min(self.settings.max_tokens, n_cells, n_tokens))
        left_bytes = claim.limit_bytes - bytes_for(claim.model.cache_extents(settings), settings.kv_type)
        if left_bytes < claim.sizes.minimum_bytes:
            return left_bytes  # without asking for addresses
        try:
            return claim.room_bytes(settings, self.repacker)
        except (KernelError, MemoryBudgetError):
            return -1


def _round_up(n_cells: int) -> int:
    return -(-n_cells // BLOCK_CELLS) * BLOCK_CELLS
