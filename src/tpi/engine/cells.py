"""The cells of the KV cache, in blocks: who uses which, and what lies in those that nobody uses any more.

A block holds the keys and values of up to ``BLOCK_CELLS`` tokens that come after those of its parent, so that a path
from a root is the beginning of a text. Whoever begins alike uses the same blocks; only full ones have several users.
Pure bookkeeping. One thread.
"""

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from tpi.runtime.passes import BLOCK_CELLS


@dataclass(eq=False, slots=True)
class CellBlock:
    """Cells from ``first``. ``tokens`` are those whose keys and values are there."""

    first: int
    parent: "CellBlock | None"
    tokens: list[int] = field(default_factory=list)
    n_users: int = 0
    used_at: int = 0
    children: "list[CellBlock]" = field(default_factory=list)

    @property
    def stop(self) -> int:
        return self.first + BLOCK_CELLS


class CellPool:
    """All cells. Blocks that nobody uses stay until their cells are needed, the least recently used first."""

    def __init__(self, n_cells: int) -> None:
        assert n_cells % BLOCK_CELLS == 0, "whole blocks"
        self._free = list(range(0, n_cells, BLOCK_CELLS))
        """First cells, the lowest on top: the memory of high ones can be lent while nobody has them."""
        self._roots: list[CellBlock] = []
        self._blocks: dict[int, CellBlock] = {}
        self._clock = 0

    @property
    def n_available(self) -> int:
        """Cells that can be had in blocks of which none is used, nor any that follows: those have to stay."""
        kept = set[int]()
        for block in self._blocks.values():
            before: CellBlock | None = block if block.n_users else None
            while before is not None and before.first not in kept:
                kept.add(before.first)
                before = before.parent
        return (len(self._free) + len(self._blocks) - len(kept)) * BLOCK_CELLS

    @property
    def stop(self) -> int:
        """Behind the last cell that holds anything."""
        return max((block.stop for block in self._blocks.values()), default=0)

    def find(self, tokens: Sequence[int]) -> tuple[list[CellBlock], int]:
        """The blocks that hold the longest beginning of ``tokens``, and how many tokens that are: the last block may
        hold more, or others from there on."""
        path, n_found, siblings = list[CellBlock](), 0, self._roots
        while siblings and n_found < len(tokens):
            rest = tokens[n_found : n_found + BLOCK_CELLS]
            n_alike, best = max(
                ((count_alike(block.tokens, rest), block) for block in siblings), key=lambda entry: entry[0]
            )
            if not n_alike:
                break
            path.append(best)
            n_found += n_alike
            if n_alike < BLOCK_CELLS:
                break
            siblings = best.children
        return path, n_found

    def use(self, block: CellBlock) -> None:
        """One more user."""
        block.n_users += 1

    def leave(self, block: CellBlock) -> None:
        """One less; the block stays as it is."""
        block.n_users -= 1
        self._clock += 1
        block.used_at = self._clock

    def take(self, parent: CellBlock | None) -> CellBlock | None:
        """An empty block with one user, behind ``parent``; None if all are in use."""
        if not self._free and not self._drop_oldest():
            return None
        first = heapq.heappop(self._free)
        block = CellBlock(first, parent, n_users=1)
        (self._roots if parent is None else parent.children).append(block)
        self._blocks[first] = block
        return block

    def cut(self, block: CellBlock, n_tokens: int) -> None:
        """Forgets all but the first tokens of a block, and what nobody uses of what follows it."""
        for child in list(block.children):
            self.drop_unused_from(child)
        del block.tokens[n_tokens:]

    def drop_unused(self) -> None:
        """Forgets all that nobody uses."""
        for block in list(self._roots):
            self.drop_unused_from(block)

    def drop_unused_like(self, tokens: Sequence[int], kept: Collection[int]) -> None:
        """Forgets what nobody uses of all texts that begin like this one, but for blocks whose first cells are
        ``kept``."""
        for block in list(self._roots):
            if count_alike(block.tokens, tokens):
                self.drop_unused_from(block, kept)

    def drop_unused_from(self, block: CellBlock, kept: Collection[int] = ()) -> None:
        """Forgets what nobody uses of a block and of what follows it. ``kept`` as in ``drop_unused_like``."""
        found = [block]
        for other in found:  # grows meanwhile: a text may have more blocks than functions may call each other
            found += other.children
        for other in reversed(found):
            if not other.n_users and not other.children and other.first not in kept:
                self.drop(other)

    def drop(self, block: CellBlock) -> None:
        """Forgets a block that nobody uses and none follows."""
        assert not block.n_users and not block.children
        (self._roots if block.parent is None else block.parent.children).remove(block)
        del self._blocks[block.first]
        heapq.heappush(self._free, block.first)

    def _drop_oldest(self) -> bool:
        leaves = [block for block in self._blocks.values() if not block.n_users and not block.children]
        if not leaves:
            return False
        self.drop(min(leaves, key=lambda block: block.used_at))
        return True


def count_alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    pairs: Iterator[tuple[int, int]] = zip(some, others, strict=False)
    n_alike = 0
    for one, other in pairs:
        if one != other:
            break
        n_alike += 1
    return n_alike
