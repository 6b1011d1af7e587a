"""A rank's graphs: for every structure and shape made once, kept as long as they are used, all in the same buffers.

Owns graphs and what computes them. Knows where activations lie; what is kept of sequences its caller points graphs at.
One thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from tpi.model.blocks import Block
from tpi.runtime.folding import largest_fold, most_folded
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.graph import Graph
from tpi.runtime.ggml.held import GraphSettings, Held, Structure, held_block, held_expert
from tpi.runtime.ggml.inputs import Addresses, BatchShape, Seen, Sight
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.rankmodel import RankModel, RankSettings
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


class Graphs:
    """``close`` is idempotent."""

    def __init__(
        self, model: RankModel, settings: RankSettings, addresses: Addresses, repacker: Repacker | None = None
    ) -> None:
        """``addresses`` is where graphs read inputs and write results; ``repacker``: see ``Workspace``.

        Raises:
            KernelError: the graphs' intermediates cannot be allocated.
        """
        self.model, self._settings, self._addresses = model, settings, addresses
        self._pieces = model.pieces_of
        self._graphs: _Graphs = OrderedDict()
        self._expert_graphs: _Graphs = OrderedDict()
        self._pass_graphs: OrderedDict[tuple[int, Seen], Graph] = OrderedDict()
        self._held = {index: self._hold(model.blocks[index]) for index in self._pieces}
        self._numbers: dict[Structure, int] = {}
        self._structures = {index: self._number(held) for index, held in self._held.items()}
        self._experts = {piece.index: self._hold_expert(piece) for piece in model.pieces if piece.expert is not None}
        self._n_nodes: dict[int, int] = {}
        """Of the largest graph of a structure."""
        n_cells = tuple((window, settings.cells_of(window)) for window in model.windows)
        self._all_cells: Seen = tuple((window, Sight(n_kv)) for window, n_kv in n_cells)
        folds = {window: largest_fold(model.attention(window), settings) for window in model.windows}
        self._all_folded = tuple((window, replace(sight, fold=folds[window])) for window, sight in self._all_cells)
        """The same where heads are rows of one: these are copied."""
        self._graph_settings = GraphSettings(
            n_cells, settings.kv_type, repacker, settings.is_reproducible, settings.n_cells
        )
        n_lanes = settings.n_parts + bool(self._experts)
        self.compute = Compute(settings.n_threads, n_lanes, is_reproducible=settings.is_reproducible)
        try:
            self._reserve()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for graph in (*self._graphs.values(), *self._expert_graphs.values(), *self._pass_graphs.values()):
            graph.close()
        for graphs in (self._graphs, self._expert_graphs, self._pass_graphs):
            graphs.clear()
        self.compute.close()

    @property
    def kept_bytes(self) -> int:
        """What the graphs that are kept take at most: as many as may be, equally many of every structure, since a pass
        needs one of each, and all as large as the largest of their structure."""
        whole = _PASS_GRAPHS_KEPT if self.most_whole_tokens else 0
        n_bytes = whole * (_GRAPH_BYTES + _NODE_BYTES * sum(map(self._n_nodes.__getitem__, self._structures.values())))
        for structures in (set(self._structures.values()), {structure for _, structure in self._experts.values()}):
            sizes = [_GRAPH_BYTES + _NODE_BYTES * self._n_nodes[structure] for structure in structures]
            n_bytes += -(-self._n_kept * sum(sizes) // max(len(sizes), 1))
        return n_bytes

    @property
    def most_whole_tokens(self) -> int:
        """Passes of so many tokens can be one graph; 0: none, other ranks or experts are waited for in between."""
        settings = self._settings
        if self.model.partition.n_ranks > 1 or self._experts:
            return 0
        has_room = settings.max_tokens >= _ROOM_FOR_PASS_GRAPH
        return min(settings.n_sequences, settings.n_sampled) if settings.n_sequences > 1 else int(has_room)

    def of(self, block: Block, shape: BatchShape, lane: int = 0) -> Graph:
        """The graph of ``block`` for ``shape``, placed and ready; blocks of equal structure share one. One of lane 1
        may be run piece by piece in turns with one of lane 0. It is to be pointed at its state."""
        held = self._held[block.index]
        return self._find(self._graphs, held, self._structures[block.index], _shape_for(held, shape), lane)

    def of_expert(self, piece: int, n_rows: int) -> tuple[Graph, int]:
        """The graph of an expert's piece for at least so many rows, and how many rows it takes."""
        held, structure = self._experts[piece]
        n_taken = min(_expert_rows(n_rows), self._settings.max_tokens)
        # Experts are computed between the halves of other graphs: in a lane of their own, and none of those may go.
        return self._find(self._expert_graphs, held, structure, BatchShape(n_taken), self._settings.n_parts), n_taken

    def _find(self, graphs: _Graphs, held: Held, structure: int, shape: BatchShape, lane: int) -> Graph:
        def make() -> Graph:
            graph = self._build([held], shape)
            graph.place(self.compute, lane)
            return graph

        return _recall(graphs, (structure, shape, lane), self._n_kept, make)

    @property
    def _n_kept(self) -> int:
        """Graphs of blocks, and as many of experts."""
        return max(_GRAPHS_KEPT, _SHAPES_KEPT * len(self._numbers) * self._settings.n_parts)

    def structure_of(self, block: Block) -> int:
        """A number that blocks have in common which can share graphs; of a block that this rank holds."""
        return self._structures[block.index]

    def held(self, block: Block) -> Held:
        """What this rank holds of a block, of which it holds some."""
        return self._held[block.index]

    def make(self, block: Block, shape: BatchShape) -> Graph:
        """As ``of``, but the caller's own."""
        held = self._held[block.index]
        graph = self._build([held], _shape_for(held, shape))
        graph.place(self.compute)
        return graph

    def of_pass(
        self,
        n_tokens: int,
        seen: Seen,
        resident: Mapping[int, tuple[int, ...]],
        begin: Callable[[Graph], None],
    ) -> Graph:
        """The graph of a whole pass of a token of each of ``n_tokens`` sequences, all of which are sampled; for a rank
        that is alone and has all its weights at the addresses ``resident``, which stay the same. ``begin``
        is called with one that is new."""

        def make() -> Graph:
            blocks, graph = self.model.blocks, self._build_pass(n_tokens, seen)
            graph.place(self.compute)
            graph.point_parts([address for block in blocks for address in resident[block.index]])
            begin(graph)
            return graph

        return _recall(self._pass_graphs, (n_tokens, seen), _PASS_GRAPHS_KEPT, make)

    def _build_pass(self, n_tokens: int, seen: Seen) -> Graph:
        held = [self._held[block.index] for block in self.model.blocks]
        return self._build(held, BatchShape(n_tokens, seen, (1,) * n_tokens))

    def _hold(self, block: Block) -> Held:
        model = self.model
        left, share = model.left_before(block), model.share(block.index)
        before = model.blocks[block.index - 1] if block.index else None
        width = model.sum_width(before) if before is not None and before.is_kept else 0
        return held_block(block, model.state_of(block), share, self._pieces[block.index], width, left)

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
        settings = self._settings
        if self.most_whole_tokens > 1:
            for seen in {self._all_cells, self._all_folded}:
                with self._build_pass(self.most_whole_tokens, seen) as graph:
                    self.compute.reserve(graph.graph)
        for block in {self._structures[b.index]: b for b in self.model.blocks if b.index in self._pieces}.values():
            held, n_rows = self._held[block.index], settings.n_sampled if block.is_head else settings.part_tokens
            self._n_nodes[self._structures[block.index]] = self._try_largest(held, n_rows, 0)
            folded = _shape_for(held, BatchShape(most_folded(settings), self._all_folded))
            if any(sight.fold > 1 for _, sight in folded.seen):
                self._try([held], folded, 0)
            if settings.n_parts > 1 and not block.is_head and len(self._pieces[block.index]) > 1:
                self._try_largest(held, -(-settings.max_tokens // 2), 1)
        for structure, held in {structure: held for held, structure in self._experts.values()}.items():
            self._n_nodes[structure] = self._try([held], BatchShape(settings.max_tokens), settings.n_parts)

    def _try(self, held: Sequence[Held], shape: BatchShape, lane: int) -> int:
        """Returns how many nodes the graph has."""
        with self._build(held, shape) as graph:
            self.compute.reserve(graph.graph, lane)
            graph.place(self.compute, lane)
            return graph.n_nodes

    def _try_largest(self, held: Held, n_rows: int, lane: int) -> int:
        """Where rows are cut into runs, the longest run decides, and whether there are others; and then where it is."""
        cuts = _uneven(n_rows, self._settings.n_sequences) if held.is_recurrent else {()}
        shapes = [_shape_for(held, BatchShape(n_rows, self._all_cells, runs)) for runs in cuts]
        return max(self._try([held], shape, lane) for shape in shapes)


def _recall(graphs: OrderedDict[_Key, Graph], key: _Key, n_kept: int, make: Callable[[], Graph]) -> Graph:
    """The graph of ``key``, made if it is not there; of more than ``n_kept`` the least recently used one goes."""
    graph = graphs.get(key)
    if graph is None:
        graph = graphs[key] = make()
        if len(graphs) > n_kept:
            graphs.popitem(last=False)[1].close()
    graphs.move_to_end(key)
    return graph


def _uneven(n_rows: int, n_sequences: int) -> set[tuple[int, ...]]:
    """The lengths of runs that have so many rows, all but one of them as short as can be."""
    most = min(n_rows, n_sequences)
    others = [(1,) * (n_runs - 1) for n_runs in {1, min(2, most), most}]
    return {runs for ones in others for runs in ((*ones, n_rows - len(ones)), (n_rows - len(ones), *ones))}


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
