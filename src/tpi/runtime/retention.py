"""How far back sequences can be cut, as everybody can tell from the passes alone: keys and values of all cells stay,
those of a window are overwritten, recurrent states are there where they were kept. Pure bookkeeping."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpi.model.blocks import Block, has_recurrent_state
from tpi.model.states import FULL, KvState
from tpi.runtime.rankmodel import RankSettings
from tpi.runtime.recurrent import StateMark, StateSlots


@dataclass(frozen=True)
class KeptBeside:
    """What ranks keep of a sequence beside cells: rings, of which ``n_written`` positions were written, and recurrent
    states."""

    n_written: int = 0
    marks: tuple[StateMark, ...] = ()


def lies_in_cells(blocks: Sequence[Block]) -> bool:
    """Whether all that is kept of a sequence lies in cells, which any other can look at."""
    windows = (block.state.window for block in blocks if isinstance(block.state, KvState))
    return not has_recurrent_state(blocks) and all(window == FULL for window in windows)


class Retention:
    """What ranks keep of all sequences."""

    def __init__(self, blocks: Sequence[Block], settings: RankSettings) -> None:
        states = (block.state for block in blocks)
        windows = {state.window for state in states if isinstance(state, KvState)} - {FULL}
        self._rings = [(window, settings.ring_cells(window)) for window in sorted(windows)]
        n = settings.n_sequences
        self._slots = StateSlots(n, settings.n_kept_states) if has_recurrent_state(blocks) else None
        self._n_written = [0] * n
        """By sequence: of so many positions the rings have been written."""

    @property
    def keeps_states(self) -> bool:
        """There are recurrent states: passes say after which tokens they are to be kept."""
        return self._slots is not None

    @property
    def is_bound(self) -> bool:
        """Not all is kept in cells, which any sequence can look at: where it can go on depends on its number."""
        return bool(self._rings) or self._slots is not None

    def resume(self, sequence: int, n_tokens: int) -> int:
        """Of the first ``n_tokens`` of the sequence, all of which were computed, how many need not be again."""
        n_written = self._n_written[sequence]
        if any(n_written - n_ring > max(0, n_tokens + 1 - window) for window, n_ring in self._rings):
            return 0
        return n_tokens if self._slots is None else self._slots.latest(sequence, n_tokens)

    def begin(self, sequence: int, n_tokens: int, stop: int) -> None:
        """A pass begins behind the first ``n_tokens``, and goes to ``stop``."""
        self._n_written[sequence] = max(self._n_written[sequence], stop) if n_tokens else stop
        if self._slots is not None:
            self._slots.begin(sequence, n_tokens)

    def end(self, sequence: int, n_tokens: int, keep: bool) -> None:
        """It is through: the sequence has ``n_tokens``."""
        if self._slots is not None:
            self._slots.end(sequence, n_tokens, keep)

    def prefix(self, sequence: int, n_tokens: int) -> KeptBeside:
        """What there is beside cells of its first ``n_tokens``, to which it can be cut back."""
        marks = () if self._slots is None else self._slots.marks(sequence, n_tokens)
        return KeptBeside(self._n_written[sequence], marks)

    def can_place(self, kept: KeptBeside, n_tokens: int) -> bool:
        """That may be there beside cells of ``n_tokens``."""
        n_most = 0 if self._slots is None else self._slots.n_most
        return len(kept.marks) <= n_most and all(0 < mark.n_tokens <= n_tokens for mark in kept.marks)

    def place(self, sequence: int, kept: KeptBeside) -> None:
        """Of the sequence there is that now, and nothing else."""
        self._n_written[sequence] = kept.n_written
        if self._slots is not None:
            self._slots.place(sequence, kept.marks)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """What is kept of ``source``, which can be cut back to ``n_tokens``, is copied to ``target``."""
        self._n_written[target] = self._n_written[source]
        if self._slots is not None:
            self._slots.copy(source, target, n_tokens)
