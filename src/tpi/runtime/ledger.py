"""Which passes hold on a rank. One that is through here holds when the next begins, or when the master says so: another
rank may have been stopped in it. What does not hold has left no trace, but in cells that nobody sees. One thread."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpi.runtime.passes import Copies, Pass, SequenceCopy
from tpi.runtime.recurrent import StateSlots
from tpi.runtime.sights import starts_of


@dataclass(frozen=True)
class _Ended:
    """What a pass has done to a sequence: it has ``n_tokens`` now, and their state is to be kept or not."""

    sequence: int
    n_tokens: int
    is_kept: bool


class Ledger:
    """Keeps ``slots`` up to date, None where nothing is recurrent; they stay the caller's."""

    def __init__(self, slots: StateSlots | None) -> None:
        self._slots = slots
        self.last_pass = 0
        """The number of the pass that was through last; 0: none since everything was forgotten."""
        self._unsettled: tuple[_Ended, ...] | None = None
        """What it has done, as long as nobody has said that it holds."""
        self._n_copied = 0
        """How many copies of sequences were made for passes that do not hold."""

    def settle(self) -> None:
        """The last pass holds: another begins."""
        ended, self._unsettled = self._unsettled, None
        if ended is None:
            return
        self._n_copied = 0
        if self._slots is not None:
            for entry in ended:
                self._slots.end(entry.sequence, entry.n_tokens, entry.is_kept)

    def resume(self, last_pass: int) -> None:
        """Passes up to ``last_pass`` hold; a later one was stopped, if not here then on another rank."""
        if self.last_pass <= last_pass:
            self.settle()
        self.last_pass, self._unsettled = last_pass, None

    def to_copy(self, copies: Copies) -> Sequence[SequenceCopy]:
        """Which sequences a pass begins to copy. What passes began with that do not hold comes again, and is copied
        once: a source may be another sequence by then."""
        n_made, self._n_copied = self._n_copied, len(copies.sequences)
        return copies.sequences[n_made:]

    def copied(self) -> None:
        """What was copied last holds without a pass."""
        self._n_copied = 0

    def end(self, work: Pass) -> None:
        """The pass is through."""
        runs = starts_of(work.all_runs) if self._slots is not None else []
        ends = ((run, int(work.positions[first]) + run.n_tokens) for first, run in runs)
        self._unsettled = tuple(_Ended(run.sequence, stop, run.is_kept) for run, stop in ends)
        self.last_pass = work.pass_id

    def forget(self) -> None:
        """Everything: all sequences begin anew."""
        self.last_pass, self._unsettled, self._n_copied = 0, None, 0
        if self._slots is not None:
            self._slots.forget()
