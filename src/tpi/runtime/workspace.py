"""All memory of one rank beside its weights: activations, what is kept of sequences, graphs and their intermediates.

Made before the window, so that what it needs is known when the window's budget is decided. Pages become resident as
they are used. Graphs are made and kept by ``graphs``. Runs nothing; one thread.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tpi.model.blocks import Block
from tpi.model.states import FULL, KvState, RecurrentState
from tpi.runtime.ggml.graph import StateAddresses
from tpi.runtime.ggml.inputs import Seen
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.graphs import Graphs
from tpi.runtime.kvcache import KvCache
from tpi.runtime.ledger import Ledger
from tpi.runtime.passarrays import PassArrays
from tpi.runtime.passes import Copies, Pass
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.recurrent import RecurrentStates, StateSlots
from tpi.runtime.sights import starts_of
from tpi.weights.layout import Piece


@dataclass(frozen=True)
class PassState:
    """What the sequences of a pass read and write, by run: the first row, the number of rows, and the slots of
    recurrent states."""

    runs: tuple[tuple[int, int, int, int], ...]

    def within(self, start: int, stop: int) -> tuple[tuple[int, int, int], ...]:
        """Of the runs of rows ``start`` to ``stop``: how many rows, the slot that is read, the one that is written. A
        run that has begun before goes on from what was written."""
        found = []
        for first, n_rows, source, target in self.runs:
            a, b = max(first, start), min(first + n_rows, stop)
            if a < b:
                found.append((b - a, source if a == first else target, target))
        return tuple(found)


class Workspace:
    """A context manager; ``close`` is idempotent."""

    def __init__(self, model: RankModel, settings: RankSettings, repacker: Repacker | None = None) -> None:
        """``repacker``, if given, is the one that rearranged the weights that will be held; it stays the caller's.

        Raises:
            KernelError: the graphs' intermediates cannot be allocated.
            MemoryBudgetError: the system does not give the memory for activations or KV cache.
        """
        self.model, self.settings = model, settings
        self.repacking = repacker.name if repacker is not None else ""
        """In whose order the weights will be; empty: as they are."""
        self.pieces: Mapping[int, tuple[Piece, ...]] = model.pieces_of
        self.arrays = PassArrays(model, settings)
        self.cache = KvCache(model.cache_extents(settings), settings.kv_type)
        slots = StateSlots(settings.n_sequences, settings.n_kept_states)
        self.states = RecurrentStates(model.state_sizes(), slots)
        self.ledger = Ledger(slots if self.states else None)
        try:
            self.graphs = Graphs(model, settings, self.arrays.addresses, repacker)
        except BaseException:
            self.cache.close()
            self.states.close()
            raise
        self.compute = self.graphs.compute

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.graphs.close()
        self.cache.close()
        self.states.close()

    @property
    def residual(self) -> Float32Array:
        """The residual stream, f32 [max_tokens, n_embd]."""
        return self.arrays.residual

    @property
    def activation_bytes(self) -> int:
        """See ``PassArrays.n_bytes``."""
        return self.arrays.n_bytes

    @property
    def kept_bytes(self) -> int:
        """What is kept of sequences when everything was written: KV cache and recurrent states."""
        return self.cache.n_bytes + self.states.n_bytes

    def load(self, work: Pass) -> Seen:
        """Copies the pass's inputs to where the graphs read them; returns what attention looks at."""
        return self.arrays.load(work)

    def adopt(self, model: RankModel) -> None:
        """Goes on with a model of which this rank holds the same."""
        self.model = self.graphs.model = model

    def forget(self) -> None:
        """All sequences."""
        self.cache.forget()
        self.ledger.forget()

    def copy(self, copies: Copies) -> None:
        """Makes the copies that a pass begins with, as far as they have not been made.

        Raises:
            ProtocolError: no recurrent state for where a sequence goes on was kept.
        """
        sequences = self.ledger.to_copy(copies)
        if not copies:
            return
        for cells in copies.cells:
            self.arrays.sights.copy(cells)
        for block in self.model.blocks:
            state = block.state
            if block.index not in self.cache or not isinstance(state, KvState):
                continue
            if state.window == FULL:
                for cells in copies.cells:
                    self.cache.copy(block.index, cells.source, cells.target, cells.n_cells)
            else:
                n_ring = self.settings.ring_cells(state.window)
                for copy in sequences:
                    self.cache.copy(block.index, copy.source * n_ring, copy.target * n_ring, n_ring)
        if self.states:
            for copy in sequences:
                self.states.copy(*self.states.slots.copy(copy.source, copy.target, copy.n_tokens))

    def begin(self, work: Pass) -> PassState:
        """What the pass's sequences read and write.

        Raises:
            ProtocolError: no recurrent state for where a sequence goes on was kept.
        """
        if not self.states:
            return PassState(((0, work.n_tokens, 0, 0),))
        return PassState(
            tuple(
                (first, run.n_tokens, *self.states.slots.begin(run.sequence, int(work.positions[first])))
                for first, run in starts_of(work.all_runs)
            )
        )

    def clear(self, work: Pass) -> None:
        """What a pass that was stopped has written to cells is gone: whatever it is, masked attention multiplies it."""
        spans = {window: self.arrays.written(window, work.n_tokens) for window in self.model.windows}
        for block in self.model.blocks:
            if block.index in self.cache and isinstance(block.state, KvState):
                for span in spans[block.state.window]:
                    self.cache.zero(block.index, span)

    def states_of(self, blocks: Iterable[Block], runs: Sequence[tuple[int, int, int]] = ()) -> list[StateAddresses]:
        """Where the state of those of the blocks lies that have some, for graphs whose rows are these runs."""
        found: list[StateAddresses] = []
        for block in blocks:
            held = self.graphs.held(block)
            if isinstance(held.state, KvState) and held.has_state:
                source = block.index if block.reads_state_of is None else block.reads_state_of
                found.append(self.cache.addresses(source))
            elif isinstance(held.state, RecurrentState) and held.has_state:
                slots = (slot for _, source, target in runs for slot in (source, target))
                found.append(tuple(a for slot in slots for a in self.states.addresses(block.index, slot)))
        return found
