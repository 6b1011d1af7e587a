"""How far back a sequence can be cut, as everybody can tell from the passes alone: keys and values of all cells stay,
those of a window are overwritten, recurrent states are there where they were kept. Pure bookkeeping."""

from collections.abc import Sequence

from tpi.model.blocks import Block, has_recurrent_state
from tpi.model.states import FULL, KvState
from tpi.runtime.rankmodel import RankSettings
from tpi.runtime.recurrent import StateSlots


class Retention:
    """What ranks keep of one sequence."""

    def __init__(self, blocks: Sequence[Block], settings: RankSettings) -> None:
        states = (block.state for block in blocks)
        windows = {state.window for state in states if isinstance(state, KvState)} - {FULL}
        self._rings = [(window, settings.ring_cells(window)) for window in sorted(windows)]
        self._slots = StateSlots(1, settings.n_kept_states) if has_recurrent_state(blocks) else None
        self._n_written = 0
        """Of so many positions the rings have been written."""
        self._target = 0

    @property
    def keeps_states(self) -> bool:
        """There are recurrent states: passes say after which tokens they are to be kept."""
        return self._slots is not None

    def resume(self, n_tokens: int) -> int:
        """Of the first ``n_tokens`` of the sequence, all of which were computed, how many need not be again."""
        if any(self._n_written - n_ring > max(0, n_tokens + 1 - window) for window, n_ring in self._rings):
            return 0
        return n_tokens if self._slots is None else self._slots.latest(0, n_tokens)

    def begin(self, n_tokens: int, stop: int) -> None:
        """A pass begins behind the first ``n_tokens``, and goes to ``stop``."""
        self._n_written = max(self._n_written, stop) if n_tokens else stop
        if self._slots is not None:
            _, self._target = self._slots.begin(0, n_tokens)

    def end(self, n_tokens: int, keep: bool) -> None:
        """It is through: the sequence has ``n_tokens``."""
        if self._slots is not None:
            self._slots.end(0, self._target, n_tokens, keep)
