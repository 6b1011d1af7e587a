"""All memory of one rank beside its weights: activations, KV cache, graphs and their intermediates.

Made before the window, so that what it needs is known when the window's budget is decided. Pages become resident as
they are used. Runs nothing; one thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tpi.errors import MemoryBudgetError
from tpi.gguf.types import F16, TensorType
from tpi.model.blocks import Block
from tpi.model.partition import Partition
from tpi.model.spec import ModelSpec
from tpi.runtime.ggml.builder import Addresses, BatchShape, GraphSettings, HeldBlock
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.graph import Graph
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.kvcache import KvCache
from tpi.runtime.passes import TILED_TOKENS, Pass
from tpi.weights.layout import Piece

N_KV_STEP = 256
"""The number of cells that a graph sees is rounded up to this, so that few graph shapes exist."""

N_SPLIT_TOKENS = 2 * TILED_TOKENS
"""From so many tokens on a pass is computed in two parts, if it may be: half of them take the faster kernels."""

_GRAPHS_KEPT = 24
_F16_MINUS_INFINITY = np.uint16(0xFC00)


@dataclass(frozen=True)
class RankSettings:
    """``max_tokens`` per pass, ``n_cells`` of KV cache and their type, ``n_threads`` that compute."""

    max_tokens: int
    n_cells: int
    n_threads: int
    kv_type: TensorType = F16
    max_sampled: int | None = None
    """Rows of a pass whose logits may be wanted; None: all."""
    n_parts: int = 1
    """In so many parts a long pass is computed, so that one can be summed while the next is computed: 1 or 2."""
    wire_bytes: float = 2.0
    """Of a value on its way to other ranks."""

    @property
    def n_sampled(self) -> int:
        """The most rows that the head computes."""
        return self.max_tokens if self.max_sampled is None else min(self.max_sampled, self.max_tokens)

    @property
    def part_tokens(self) -> int:
        """The most rows that are computed at once."""
        if self.n_parts == 1:
            return self.max_tokens
        return min(self.max_tokens, max(N_SPLIT_TOKENS - 1, -(-self.max_tokens // 2), self.n_sampled))


@dataclass(frozen=True)
class RankModel:
    """What one rank holds of a model. ``pieces`` are in execution order."""

    spec: ModelSpec
    blocks: tuple[Block, ...]
    partition: Partition
    rank: int
    pieces: tuple[Piece, ...]

    def kv_widths(self) -> dict[int, int]:
        """Values per cell in the KV cache of each block that has one."""
        return {
            block.index: block.state.width(self.partition.shares[block.index][self.rank])
            for block in self.blocks
            if block.state is not None
        }


class Workspace:
    """A context manager; ``close`` is idempotent. Arrays are f32 [max_tokens, n_embd] unless said otherwise."""

    def __init__(self, model: RankModel, settings: RankSettings, repacker: Repacker | None = None) -> None:
        """``repacker``, if given, is the one that rearranged the weights that will be held; it stays the caller's.

        Raises:
            KernelError: the graphs' intermediates cannot be allocated.
            MemoryBudgetError: the system does not give the memory for activations or KV cache.
        """
        self.model, self.settings = model, settings
        self.pieces: Mapping[int, tuple[Piece, ...]] = {
            block: tuple(group) for block, group in groupby(model.pieces, key=lambda piece: piece.block)
        }
        n, width = settings.max_tokens, model.spec.n_embd
        try:
            self.residual = np.zeros((n, width), dtype=np.float32)
            self.total = np.zeros((n, width), dtype=np.float32)
            self._positions = np.zeros(n, dtype=np.int32)
            self._cells = np.zeros(n, dtype=np.int64)
            self._mask = np.zeros(n * settings.n_cells, dtype=np.uint16)
        except MemoryError as error:
            raise MemoryBudgetError(f"no room for the activations ({error}): use a smaller --context") from error
        arrays = (self.residual, self._positions, self._cells, self._mask)
        self._addresses = Addresses(width, *(array.ctypes.data for array in arrays))
        self._graphs: OrderedDict[tuple[int, BatchShape, int], Graph] = OrderedDict()
        shares = {index: model.partition.shares[index][model.rank] for index in self.pieces}
        self._held = {
            index: HeldBlock(model.blocks[index], shares[index], pieces) for index, pieces in self.pieces.items()
        }
        numbers: dict[tuple[object, ...], int] = {}
        self._structures = {
            index: numbers.setdefault(_structure(held), len(numbers)) for index, held in self._held.items()
        }
        self.cache = KvCache(model.kv_widths(), settings.n_cells, settings.kv_type)
        self._graph_settings = GraphSettings(settings.n_cells, settings.kv_type, repacker)
        self._pass_graph: tuple[int, Graph] | None = None
        self.compute = Compute(settings.n_threads, settings.n_parts)
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
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._drop_pass_graph()
        self.compute.close()
        self.cache.close()

    @property
    def activation_bytes(self) -> int:
        """Memory of the arrays when they are used to the full, and of a pass's mask while it is copied."""
        arrays: tuple[npt.NDArray[Any], ...] = (self.residual, self.total, self._mask)
        n_bytes: int = sum(array.nbytes for array in arrays)
        return n_bytes + 2 * self.settings.max_tokens * self.settings.n_cells

    def load(self, work: Pass) -> int:
        """Copies the pass's inputs to where the graphs read them; returns how many cells the graphs look at."""
        n, n_seen = work.visible.shape
        n_kv = min(self.settings.n_cells, -(-int(n_seen) // N_KV_STEP) * N_KV_STEP)
        if work.embeddings is not None:
            self.residual[:n] = work.embeddings
        self._positions[:n] = work.positions
        self._cells[:n] = work.cells
        mask = self._mask[: n * n_kv].reshape(n, n_kv)
        mask[:, n_seen:] = _F16_MINUS_INFINITY
        np.multiply(~work.visible, _F16_MINUS_INFINITY, out=mask[:, :n_seen])
        return n_kv

    def graph(self, block: Block, shape: BatchShape, lane: int = 0) -> Graph:
        """The graph of ``block`` for ``shape``, placed and ready, pointed at its state; blocks of equal structure share
        one. One of lane 1 may be run piece by piece in turns with one of lane 0."""
        key = self._structures[block.index], _shape_for(block, shape), lane
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._build([block], shape)
            graph.place(self.compute, lane)
            self._graphs[key] = graph
            if len(self._graphs) > _GRAPHS_KEPT:
                self._graphs.popitem(last=False)[1].close()
        self._graphs.move_to_end(key)
        graph.point_state(self.states_of([block]))
        return graph

    def states_of(self, blocks: Iterable[Block]) -> list[tuple[int, int]]:
        """Where the state of those of the blocks lies that have some."""
        return [self.cache.addresses(block.index) for block in blocks if block.index in self.cache]

    def structure_of(self, block: Block) -> int:
        """A number that blocks have in common which can share graphs; of a block that this rank holds."""
        return self._structures[block.index]

    def make_graph(self, block: Block, shape: BatchShape) -> Graph:
        """As ``graph``, but the caller's own."""
        graph = self._build([block], shape)
        graph.place(self.compute)
        return graph

    def pass_graph(self, n_kv: int, resident: Mapping[int, tuple[int, ...]]) -> Graph:
        """The graph of a whole pass of one token that sees ``n_kv`` cells; for a rank that is alone and has all its
        weights at the addresses ``resident``, which stay the same. Only the last one is kept: ``n_kv`` only grows."""
        if self._pass_graph is None or self._pass_graph[0] != n_kv:
            self._drop_pass_graph()
            graph = self._build(self.model.blocks, BatchShape(1, n_kv))
            graph.place(self.compute)
            graph.point_state(self.states_of(self.model.blocks))
            graph.point_parts([address for block in self.model.blocks for address in resident[block.index]])
            self._pass_graph = n_kv, graph
        return self._pass_graph[1]

    def _drop_pass_graph(self) -> None:
        if self._pass_graph is not None:
            self._pass_graph[1].close()
            self._pass_graph = None

    def _build(self, blocks: Sequence[Block], shape: BatchShape) -> Graph:
        return Graph([self._held[block.index] for block in blocks], shape, self._graph_settings, self._addresses)

    def _reserve(self) -> None:
        """Makes the shared buffers as large as the largest graph of each structure needs. Where a block is several
        pieces, both parts of a pass are under way in it."""
        settings = self.settings
        for block in {self._structures[b.index]: b for b in self.model.blocks if b.index in self.pieces}.values():
            n_rows = settings.n_sampled if block.is_head else settings.part_tokens
            with self._build([block], BatchShape(n_rows, settings.n_cells)) as graph:
                self.compute.reserve(graph.graph)
                graph.place(self.compute)
            if settings.n_parts > 1 and not block.is_head and len(self.pieces[block.index]) > 1:
                with self._build([block], BatchShape(-(-settings.max_tokens // 2), settings.n_cells)) as graph:
                    self.compute.reserve(graph.graph, 1)
                    graph.place(self.compute, 1)


def _shape_for(block: Block, shape: BatchShape) -> BatchShape:
    """What of ``shape`` the block's graph depends on."""
    return shape if block.state is not None else BatchShape(shape.n_tokens, 0)


def _structure(held: HeldBlock) -> tuple[object, ...]:
    """What two blocks must have in common to share graphs: how they are computed, what they keep, and the roles, types
    and sizes of all parts."""
    block = held.block
    runs = tuple(held.head_runs()) if held.has_state else ()
    parts = (
        tuple((part.role, part.type_id, part.columns.size, part.rows.size) for part in piece.parts)
        for piece in held.pieces
    )
    return block.graph, block.state, runs, *parts
