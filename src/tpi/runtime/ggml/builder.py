"""Makes the ggml nodes of one block from the steps of its architecture; cuts a graph by pieces.

Allocates nothing but tensors' descriptions, in a C context that the caller owns. One thread.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from tpi.gguf.types import F16, TensorType
from tpi.model.architectures import architecture
from tpi.model.spec import BlockKind, ModelSpec
from tpi.runtime.ggml.binding import (
    PREC_F32,
    ROPE_NORMAL,
    TYPE_F16,
    TYPE_F32,
    TYPE_I32,
    TYPE_I64,
    Tensor,
    ggml,
)
from tpi.runtime.ggml.repack import Repacker
from tpi.weights.layout import Part, Piece
from tpi.weights.shards.packing import packs

_OTHER_NODES = 64
"""More than any block has beside what each part of a weight adds: a product, and a place after the ones before it."""
_NODES_PER_PART = 2

_PLACEHOLDER = 4096
"""A data pointer that says 'not yours to allocate' until the real one is written."""


@dataclass(frozen=True)
class BatchShape:
    """What a graph is built for: ``n_tokens`` rows that see ``n_kv`` cells."""

    n_tokens: int
    n_kv: int


@dataclass(frozen=True)
class GraphSettings:
    """What all graphs of a rank have in common: the cells of its KV cache and their type, and whose order the weights
    have (None: the model's own)."""

    n_cells: int
    kv_type: TensorType = F16
    repacker: Repacker | None = None


@dataclass(frozen=True)
class Addresses:
    """Where the inputs of graphs lie; the arrays outlive the graphs.

    ``residual`` f32 [n_tokens, n_embd], ``positions`` i32 [n_tokens], ``cells`` i64 [n_tokens], ``mask`` f16
    [n_tokens, n_kv].
    """

    residual: int
    positions: int
    cells: int
    mask: int


def max_nodes(pieces: Sequence[Piece]) -> int:
    return _OTHER_NODES + _NODES_PER_PART * sum(len(piece.parts) for piece in pieces)


def context_bytes(pieces: Sequence[Piece]) -> int:
    """Room for all tensors, the graph and, where there are several pieces, one graph for each."""
    base = ggml().base
    n_parts = sum(len(piece.parts) for piece in pieces)
    n_tensors = _OTHER_NODES + (1 + _NODES_PER_PART) * n_parts
    graphs = [max_nodes(pieces), *(max_nodes([piece]) for piece in pieces)]
    graph_bytes = sum(int(base.ggml_graph_overhead_custom(size, False)) for size in graphs)
    return int(base.ggml_tensor_overhead()) * n_tensors + graph_bytes


@dataclass(frozen=True)
class Joint:
    """Where a block's nodes are appended: to this graph, with this tensor as the residual stream that enters."""

    graph: int
    residual: int


@dataclass(frozen=True)
class Step:
    """One piece's share of the graph, and where its parts' addresses are written."""

    graph: int
    n_nodes: int
    pointers: tuple[ctypes.c_void_p, ...]


@dataclass(frozen=True)
class RowInput:
    """Where a graph's rows begin: the pointer to them, the first row's address, bytes from row to row."""

    pointer: ctypes.c_void_p
    address: int
    row_bytes: int


def _data_pointer(tensor: int) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(tensor + Tensor.data.offset)


class Builder:
    """Makes ggml nodes from ``model.steps``; every node is appended at once, so node order is call order.

    The nodes go into a graph of their own, or ``onto`` one that has others.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kind: BlockKind,
        pieces: Sequence[Piece],
        shape: BatchShape,
        settings: GraphSettings,
        addresses: Addresses,
        context: int,
        onto: Joint | None = None,
    ) -> None:
        self._spec, self._kind, self._shape, self._settings, self._context = spec, kind, shape, settings, context
        self._base = ggml().base
        self._addresses = addresses
        self._onto = onto
        self.graph: int = onto.graph if onto else self._base.ggml_new_graph_custom(context, max_nodes(pieces), False)
        self.k_pointers: list[ctypes.c_void_p] = []
        self.v_pointers: list[ctypes.c_void_p] = []
        self._weights: dict[str, list[tuple[int, int]]] = {}
        self._pointers: list[tuple[ctypes.c_void_p, ...]] = []
        self._starts = [self._base.ggml_graph_n_nodes(self.graph)]
        self._positions = self._cells = self._mask = 0
        for number, piece in enumerate(pieces):
            tensors = [self._weight(part) for part in piece.parts]
            for part, tensor in zip(piece.parts, tensors, strict=True):
                self._weights.setdefault(part.role, []).append((number, tensor))
            self._pointers.append(tuple(_data_pointer(tensor) for tensor in tensors))
        self.row_inputs: list[RowInput] = []
        if kind is BlockKind.ATTENTION:
            self._positions = self._rows(TYPE_I32, (shape.n_tokens,), addresses.positions, 4)
            self._cells = self._rows(TYPE_I64, (shape.n_tokens,), addresses.cells, 8)
            self._mask = self._rows(TYPE_F16, (shape.n_kv, shape.n_tokens), addresses.mask, 2 * shape.n_kv)

    def finish(self) -> list[Step]:
        """Cuts the finished graph into one sub-graph per piece."""
        n_nodes = self._base.ggml_graph_n_nodes(self.graph)
        self._enter(len(self._pointers) - 1)
        if len(self._pointers) == 1:
            return [Step(self.graph, n_nodes, self._pointers[0])]
        steps = []
        for pointers, start, stop in zip(self._pointers, self._starts, [*self._starts[1:], n_nodes], strict=True):
            graph = self._base.ggml_new_graph_custom(self._context, max(stop - start, 1), False)
            for index in range(start, stop):
                self._base.ggml_graph_add_node(graph, self._base.ggml_graph_node(self.graph, index))
            steps.append(Step(graph, stop - start, pointers))
        return steps

    def _weight(self, part: Part) -> int:
        tensor = self._input(part.type_id, (part.columns.size, part.rows.size), _PLACEHOLDER)
        repacker = self._settings.repacker
        if repacker is not None and packs(repacker, part):
            repacker.mark(tensor)
        return tensor

    def _input(self, type_id: int, extents: tuple[int, ...], address: int) -> int:
        make = self._base.ggml_new_tensor_1d if len(extents) == 1 else self._base.ggml_new_tensor_2d
        tensor: int = make(self._context, type_id, *extents)
        _data_pointer(tensor).value = address
        return tensor

    def _rows(self, type_id: int, extents: tuple[int, ...], address: int, row_bytes: int) -> int:
        """An input with one row per token, which may begin at a later row than the first."""
        tensor = self._input(type_id, extents, address)
        self.row_inputs.append(RowInput(_data_pointer(tensor), address, row_bytes))
        return tensor

    def _enter(self, piece: int) -> None:
        """From the next node on, ``piece`` is needed and the ones before it are not."""
        assert piece >= len(self._starts) - 1, "a block's slots must stand in the order in which its graph uses them"
        while len(self._starts) <= piece:
            self._starts.append(self._base.ggml_graph_n_nodes(self.graph))

    def _append(self, tensor: int) -> int:
        self._base.ggml_build_forward_expand(self.graph, tensor)
        return tensor

    def build(self) -> int:
        """All nodes of the block; returns its result."""
        return architecture(self._spec.architecture).build(self._kind, "rope_factors" in self._weights, self)

    @property
    def pointers(self) -> tuple[ctypes.c_void_p, ...]:
        """Where the addresses of all parts are written, one piece's after the other's."""
        return tuple(pointer for pointers in self._pointers for pointer in pointers)

    def residual(self) -> int:
        if self._onto is not None:
            return self._onto.residual
        extents = self._spec.n_embd, self._shape.n_tokens
        return self._rows(TYPE_F32, extents, self._addresses.residual, 4 * self._spec.n_embd)

    def rms_norm(self, x: int, role: str) -> int:
        [(piece, weight)] = self._weights[role]
        self._enter(piece)
        normed = self._base.ggml_rms_norm(self._context, x, self._spec.rms_eps)
        return self._append(self._base.ggml_mul(self._context, normed, weight))

    def matmul(self, role: str, x: int) -> int:
        result = 0
        for piece, weight in self._weights[role]:
            self._enter(piece)
            rows = self._append(self._base.ggml_mul_mat(self._context, weight, x))
            result = self._append(self._base.ggml_concat(self._context, result, rows, 0)) if result else rows
        return result

    def rope(self, x: int, factors_role: str | None) -> int:
        rope, dim = self._spec.rope, self._spec.head_dim
        factors = None
        if factors_role:
            [(piece, factors)] = self._weights[factors_role]
            self._enter(piece)
        heads = self._base.ggml_reshape_3d(self._context, x, dim, self._extent(x) // dim, self._shape.n_tokens)
        turned = self._base.ggml_rope_ext(
            self._context, heads, self._positions, factors, rope.n_dims, ROPE_NORMAL, rope.original_context,
            rope.base, rope.frequency_scale, rope.extrapolation, rope.attention_factor, 32.0, 1.0,
        )  # fmt: skip
        return self._append(turned)

    def attention(self, q: int, k: int, v: int) -> int:
        base, dim, n_tokens = self._base, self._spec.head_dim, self._shape.n_tokens
        width = self._extent(v)
        keys = self._store(self.k_pointers, base.ggml_reshape_2d(self._context, k, width, n_tokens), width)
        values = self._store(self.v_pointers, v, width)
        queries = base.ggml_permute(self._context, q, 0, 2, 1, 3)
        attended = base.ggml_flash_attn_ext(self._context, queries, keys, values, self._mask, 1 / sqrt(dim), 0.0, 0.0)
        base.ggml_prec_set_acc(attended, PREC_F32)
        return self._append(base.ggml_reshape_2d(self._context, attended, self._heads(q) * dim, n_tokens))

    def _store(self, pointers: list[ctypes.c_void_p], rows: int, width: int) -> int:
        """Writes ``rows`` to their cells; returns the cache seen as [head_dim, n_kv, n_kv_heads]."""
        base, dim, n_kv, kind = self._base, self._spec.head_dim, self._shape.n_kv, self._settings.kv_type
        cache = self._input(kind.id, (width, self._settings.n_cells), _PLACEHOLDER)
        written = self._append(base.ggml_set_rows(self._context, cache, rows, self._cells))
        cell_bytes, head_bytes = kind.row_bytes(width), kind.row_bytes(dim)
        seen = base.ggml_view_3d(self._context, cache, dim, n_kv, width // dim, cell_bytes, head_bytes, 0)
        pointers.extend(_data_pointer(tensor) for tensor in (cache, written, seen))
        return int(seen)

    def swiglu(self, gate: int, up: int) -> int:
        return self._append(self._base.ggml_swiglu_split(self._context, gate, up))

    def _extent(self, tensor: int) -> int:
        return int(Tensor.from_address(tensor).ne[0])

    def _heads(self, tensor: int) -> int:
        return int(Tensor.from_address(tensor).ne[1])
