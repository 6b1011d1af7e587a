"""All memory of one rank beside its weights: activations, what is kept of sequences, graphs and their intermediates.

Made before the window, so that what it needs is known when the window's budget is decided. Pages become resident as
they are used. Runs nothing; one thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from tpi.model.blocks import Block
from tpi.model.states import FULL, KvState, RecurrentState
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.graph import Graph, StateAddresses
from tpi.runtime.ggml.held import GraphSettings, Held, Structure, held_block, held_expert
from tpi.runtime.ggml.inputs import BatchShape, Seen, Sight
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.kvcache import KvCache
from tpi.runtime.ledger import Ledger
from tpi.runtime.passarrays import PassArrays
from tpi.runtime.passes import Copies, Pass
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.recurrent import RecurrentStates, StateSlots
from tpi.runtime.sights import starts_of
from tpi.weights.layout import Piece

_GRAPHS_KEPT = 32
_SHAPES_KEPT = 2
"""At least graphs of so many shapes of every structure: with fewer, each pass would make them all anew."""
_PASS_GRAPHS_KEPT = 4
_GRAPH_BYTES, _NODE_BYTES = 8_000, 1_200
"""Of a graph, and of each of its nodes: tensors, plans, and what Python knows of them (``python -m bench growth``)."""
_ROOM_FOR_PASS_GRAPH = 16
"""Where the longest pass has so many tokens, the blocks' intermediates leave room for a whole pass of one."""
_EXPERT_STEPS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
"""Rows for which graphs of experts are made; beyond these, multiples of the last."""


_Key = TypeVar("_Key")

_Graphs = OrderedDict[tuple[int, BatchShape, int], Graph]
"""By structure, shape and lane, the least recently used first."""


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
        self.pieces: Mapping[int, tuple[Piece, ...]] = model.pieces_of
        self.arrays = PassArrays(model, settings)
        self._addresses = self.arrays.addresses
        self._graphs: _Graphs = OrderedDict()
        self._expert_graphs: _Graphs = OrderedDict()
        self._held = {index: self._hold(model.blocks[index]) for index in self.pieces}
        self._numbers: dict[Structure, int] = {}
        self._structures = {index: self._number(held) for index, held in self._held.items()}
        self._experts = {piece.index: self._hold_expert(piece) for piece in model.pieces if piece.expert is not None}
        self.cache = KvCache(model.cache_extents(settings), settings.kv_type)
        slots = StateSlots(settings.n_sequences, settings.n_kept_states)
        self.states = RecurrentStates(model.state_sizes(), slots)
        n_cells = tuple((window, settings.cells_of(window)) for window in model.windows)
        self._all_cells: Seen = tuple((window, Sight(n_kv)) for window, n_kv in n_cells)
        self._graph_settings = GraphSettings(n_cells, settings.kv_type, repacker, settings.is_reproducible)
        self.ledger = Ledger(slots if self.states else None)
        self._pass_graphs: OrderedDict[tuple[int, Seen], Graph] = OrderedDict()
        self._n_nodes: dict[int, int] = {}
        """Of the largest graph of a structure."""
        n_lanes = settings.n_parts + bool(self._experts)
        self.compute = Compute(settings.n_threads, n_lanes, is_reproducible=settings.is_reproducible)
        try:
            self._reserve()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for graph in (*self._graphs.values(), *self._expert_graphs.values(), *self._pass_graphs.values()):
            graph.close()
        for graphs in (self._graphs, self._expert_graphs, self._pass_graphs):
            graphs.clear()
        self.compute.close()
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

    @property
    def kept_graphs_bytes(self) -> int:
        """What the graphs that are kept take at most: as many as may be, all as large as the largest."""
        n_graphs = self._n_kept * (2 if self._experts else 1)
        n_nodes = n_graphs * max(self._n_nodes.values(), default=0)
        if self.most_whole_tokens:
            n_graphs += _PASS_GRAPHS_KEPT
            n_nodes += _PASS_GRAPHS_KEPT * sum(self._n_nodes[structure] for structure in self._structures.values())
        return n_graphs * _GRAPH_BYTES + n_nodes * _NODE_BYTES

    @property
    def most_whole_tokens(self) -> int:
        """Passes of so many tokens can be one graph; 0: none, other ranks or experts are waited for in between."""
        settings = self.settings
        if self.model.partition.n_ranks > 1 or self._experts:
            return 0
        has_room = settings.max_tokens >= _ROOM_FOR_PASS_GRAPH
        return min(settings.n_sequences, settings.n_sampled) if settings.n_sequences > 1 else int(has_room)

    def load(self, work: Pass) -> Seen:
        """Copies the pass's inputs to where the graphs read them; returns what attention looks at."""
        return self.arrays.load(work)

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

    def graph(self, block: Block, shape: BatchShape, lane: int = 0) -> Graph:
        """The graph of ``block`` for ``shape``, placed and ready; blocks of equal structure share one. One of lane 1
        may be run piece by piece in turns with one of lane 0. It is to be pointed at its state."""
        held = self._held[block.index]
        return self._find(self._graphs, held, self._structures[block.index], _shape_for(held, shape), lane)

    def expert_graph(self, piece: int, n_rows: int) -> tuple[Graph, int]:
        """The graph of an expert's piece for at least so many rows, and how many rows it takes."""
        held, structure = self._experts[piece]
        n_taken = min(_expert_rows(n_rows), self.settings.max_tokens)
        # Experts are computed between the halves of other graphs: in a lane of their own, and none of those may go.
        return self._find(self._expert_graphs, held, structure, BatchShape(n_taken), self.settings.n_parts), n_taken

    def _find(self, graphs: _Graphs, held: Held, structure: int, shape: BatchShape, lane: int) -> Graph:
        def make() -> Graph:
            graph = self._build([held], shape)
            graph.place(self.compute, lane)
            return graph

        return _recall(graphs, (structure, shape, lane), self._n_kept, make)

    @property
    def _n_kept(self) -> int:
        """Graphs of blocks, and as many of experts."""
        return max(_GRAPHS_KEPT, _SHAPES_KEPT * len(self._numbers) * self.settings.n_parts)

    def states_of(self, blocks: Iterable[Block], runs: Sequence[tuple[int, int, int]] = ()) -> list[StateAddresses]:
        """Where the state of those of the blocks lies that have some, for graphs whose rows are these runs."""
        found: list[StateAddresses] = []
        for block in blocks:
            held = self._held[block.index]
            if isinstance(held.state, KvState) and held.has_state:
                source = block.index if block.reads_state_of is None else block.reads_state_of
                found.append(self.cache.addresses(source))
            elif isinstance(held.state, RecurrentState) and held.has_state:
                slots = (slot for _, source, target in runs for slot in (source, target))
                found.append(tuple(a for slot in slots for a in self.states.addresses(block.index, slot)))
        return found

    def structure_of(self, block: Block) -> int:
        """A number that blocks have in common which can share graphs; of a block that this rank holds."""
        return self._structures[block.index]

    def held(self, block: Block) -> Held:
        """What this rank holds of a block, of which it holds some."""
        return self._held[block.index]

    def make_graph(self, block: Block, shape: BatchShape) -> Graph:
        """As ``graph``, but the caller's own."""
        held = self._held[block.index]
        graph = self._build([held], _shape_for(held, shape))
        graph.place(self.compute)
        return graph

    def pass_graph(self, n_tokens: int, seen: Seen, resident: Mapping[int, tuple[int, ...]]) -> Graph:
        """The graph of a whole pass of a token of each of ``n_tokens`` sequences, all of which are sampled; for a rank
        that is alone and has all its weights at the addresses ``resident``, which stay the same."""

        def make() -> Graph:
            blocks, graph = self.model.blocks, self._build_pass(n_tokens, seen)
            graph.place(self.compute)
            graph.point_parts([address for block in blocks for address in resident[block.index]])
            if not self.states:
                graph.point_state(self.states_of(blocks))
            return graph

        return _recall(self._pass_graphs, (n_tokens, seen), _PASS_GRAPHS_KEPT, make)

    def _build_pass(self, n_tokens: int, seen: Seen) -> Graph:
        held = [self._held[block.index] for block in self.model.blocks]
        return self._build(held, BatchShape(n_tokens, seen, (1,) * n_tokens))

    def _hold(self, block: Block) -> Held:
        model = self.model
        left, share = model.left_before(block), model.share(block.index)
        width = model.sum_width(model.blocks[block.index - 1]) if block.is_own or left else 0
        return held_block(block, model.state_of(block), share, self.pieces[block.index], width, left)

    def _hold_expert(self, piece: Piece) -> tuple[Held, int]:
        experts = self.model.blocks[piece.block].experts
        assert experts is not None
        held = held_expert(experts, self.model.share(piece.block), piece)
        return held, self._number(held)

    def _number(self, held: Held) -> int:
        return self._numbers.setdefault(held.structure, len(self._numbers))

    def _build(self, held: Sequence[Held], shape: BatchShape) -> Graph:
        return Graph(held, shape, self._graph_settings, self._addresses)

    def _reserve(self) -> None:
        """Makes the shared buffers as large as the largest graph of each structure needs. Where a block is several
        pieces, both parts of a pass are under way in it."""
        settings = self.settings
        if self.most_whole_tokens > 1:
            with self._build_pass(self.most_whole_tokens, self._all_cells) as graph:
                self.compute.reserve(graph.graph)
        for block in {self._structures[b.index]: b for b in self.model.blocks if b.index in self.pieces}.values():
            held, n_rows = self._held[block.index], settings.n_sampled if block.is_head else settings.part_tokens
            self._n_nodes[self._structures[block.index]] = self._try([held], self._largest(held, n_rows), 0)
            if settings.n_parts > 1 and not block.is_head and len(self.pieces[block.index]) > 1:
                self._try([held], self._largest(held, -(-settings.max_tokens // 2)), 1)
        for structure, held in {structure: held for held, structure in self._experts.values()}.items():
            self._n_nodes[structure] = self._try([held], BatchShape(settings.max_tokens), settings.n_parts)

    def _try(self, held: Sequence[Held], shape: BatchShape, lane: int) -> int:
        """Returns how many nodes the graph has."""
        with self._build(held, shape) as graph:
            self.compute.reserve(graph.graph, lane)
            graph.place(self.compute, lane)
            return graph.n_nodes

    def _largest(self, held: Held, n_rows: int) -> BatchShape:
        return _shape_for(held, BatchShape(n_rows, self._all_cells, _even(n_rows, self.settings.n_sequences)))


def _recall(graphs: OrderedDict[_Key, Graph], key: _Key, n_kept: int, make: Callable[[], Graph]) -> Graph:
    """The graph of ``key``, made if it is not there; of more than ``n_kept`` the least recently used one goes."""
    graph = graphs.get(key)
    if graph is None:
        graph = graphs[key] = make()
        if len(graphs) > n_kept:
            graphs.popitem(last=False)[1].close()
    graphs.move_to_end(key)
    return graph


def _even(n_rows: int, n_runs: int) -> tuple[int, ...]:
    n_runs = min(n_runs, n_rows)
    return tuple(n_rows * (number + 1) // n_runs - n_rows * number // n_runs for number in range(n_runs))


def _expert_rows(n_rows: int) -> int:
    largest = _EXPERT_STEPS[-1]
    for step in _EXPERT_STEPS:
        if step >= n_rows:
            return step
    return -(-n_rows // largest) * largest


def _shape_for(held: Held, shape: BatchShape) -> BatchShape:
    """What of ``shape`` the block's graph depends on."""
    seen = tuple(entry for entry in shape.seen if entry[0] == held.window)
    return BatchShape(shape.n_tokens, seen, shape.runs if held.is_recurrent else ())
