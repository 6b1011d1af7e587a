"""Memory that a window is lent beyond its budget, until it is wanted back: which pieces it holds meanwhile.

Only pieces that every pass needs are held there, and only where some of them stream. Owns no memory; the window's lock
guards it.
"""

import mmap
from collections.abc import Sequence

from tpi.weights.files import round_up
from tpi.weights.stored import StoredPiece
from tpi.weights.streaming.arena import CAN_FORGET
from tpi.weights.streaming.pins import PinPlan, extra_pins, n_fitting


class Loan:
    """``n_bytes`` at most, or what is of use beside ``plan``; all of that is lent at first."""

    def __init__(self, pieces: Sequence[StoredPiece], plan: PinPlan, n_bytes: int) -> None:
        self._sizes = [round_up(piece.arena_bytes, mmap.PAGESIZE) for piece in pieces]
        self._on_demand = [piece.index for piece in pieces if piece.is_on_demand]
        cyclic = set(range(len(pieces))).difference(self._on_demand)
        is_of_use = CAN_FORGET and cyclic - plan.pinned
        self.most_bytes = min(n_bytes, sum(self._sizes[index] for index in cyclic)) if is_of_use else 0
        """Never more is lent."""
        self._n_bytes = self.most_bytes

    def shrink(self, n_bytes: int) -> None:
        """No more than so much is lent."""
        self._n_bytes = max(0, min(self._n_bytes, n_bytes))

    def grow(self, n_bytes: int) -> None:
        """At least so much is lent, if it may be."""
        self._n_bytes = max(self._n_bytes, min(n_bytes, self.most_bytes))

    def extras(self, plan: PinPlan) -> list[int]:
        """The pieces that all of the loan would hold beside ``plan``, the last to be given up first."""
        return extra_pins(self._sizes, plan, self.most_bytes, self._on_demand)

    def n_held(self, extras: Sequence[int]) -> int:
        """How many of them are held now."""
        return n_fitting(self._sizes, extras, self._n_bytes)

    def held(self, plan: PinPlan) -> Sequence[int]:
        """Those that would be held now beside ``plan``."""
        extras = self.extras(plan)
        return extras[: self.n_held(extras)]
