"""Makes the ggml nodes of one block from the steps of its architecture, and says which of them need which piece.

Allocates nothing but tensors' descriptions, in a C context that the caller owns. One thread.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from tpi.gguf.types import F16, TensorType
from tpi.model.blocks import Block, Share, Span
from tpi.model.steps import Rope, RopeStyle
from tpi.runtime.ggml.binding import (
    PREC_F32,
    ROPE_NEOX,
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

    n_embd: int
    residual: int
    positions: int
    cells: int
    mask: int


def max_nodes(pieces: Sequence[Piece]) -> int:
    return _OTHER_NODES + _NODES_PER_PART * sum(len(piece.parts) for piece in pieces)


def tensor_bytes(pieces: Sequence[Piece]) -> int:
    """Room for all tensors of a block."""
    n_parts = sum(len(piece.parts) for piece in pieces)
    return int(ggml().base.ggml_tensor_overhead()) * (_OTHER_NODES + (1 + _NODES_PER_PART) * n_parts)


def graph_bytes(n_nodes: int) -> int:
    """Room for a graph."""
    return int(ggml().base.ggml_graph_overhead_custom(n_nodes, False))


@dataclass(frozen=True)
class RowInput:
    """Where a graph's rows begin: the pointer to them, the first row's address, bytes from row to row."""

    pointer: ctypes.c_void_p
    address: int
    row_bytes: int


@dataclass(frozen=True)
class HeldBlock:
    """A block, which part of it this rank has, and in which pieces."""

    block: Block
    share: Share
    pieces: tuple[Piece, ...]

    @property
    def has_state(self) -> bool:
        """A block may keep something, and this rank hold no part that does."""
        return self.block.state is not None and self.block.state.width(self.share) > 0

    def head_runs(self) -> list[tuple[Span, Span]]:
        """See ``KvState.runs``."""
        assert self.block.state is not None
        return self.block.state.runs(self.share)


@dataclass(frozen=True)
class StatePointer:
    """Where the address of a block's state is written, with so many bytes added."""

    pointer: ctypes.c_void_p
    offset: int = 0


class Inputs:
    """What a pass brings, as tensors that all blocks of a graph share."""

    def __init__(self, context: int, shape: BatchShape, addresses: Addresses) -> None:
        self._context, self._shape, self._addresses = context, shape, addresses
        self._made: dict[str, int] = {}
        self.rows: list[RowInput] = []

    @property
    def residual(self) -> int:
        extents = self._addresses.n_embd, self._shape.n_tokens
        return self._make("residual", TYPE_F32, extents, self._addresses.residual, 4 * extents[0])

    @property
    def positions(self) -> int:
        return self._make("positions", TYPE_I32, (self._shape.n_tokens,), self._addresses.positions, 4)

    @property
    def cells(self) -> int:
        return self._make("cells", TYPE_I64, (self._shape.n_tokens,), self._addresses.cells, 8)

    @property
    def mask(self) -> int:
        extents = self._shape.n_kv, self._shape.n_tokens
        return self._make("mask", TYPE_F16, extents, self._addresses.mask, 2 * extents[0])

    def _make(self, name: str, type_id: int, extents: tuple[int, ...], address: int, row_bytes: int) -> int:
        """An input with one row per token, which may begin at a later row than the first."""
        if name not in self._made:
            tensor = self._made[name] = new_tensor(self._context, type_id, extents, address)
            self.rows.append(RowInput(data_pointer(tensor), address, row_bytes))
        return self._made[name]


def data_pointer(tensor: int) -> ctypes.c_void_p:
    """Where the tensor keeps its data's address."""
    return ctypes.c_void_p.from_address(tensor + Tensor.data.offset)


def new_tensor(context: int, type_id: int, extents: tuple[int, ...], address: int) -> int:
    """A tensor of one or two dimensions whose data are not the graph's to place."""
    base = ggml().base
    tensor: int = (base.ggml_new_tensor_1d if len(extents) == 1 else base.ggml_new_tensor_2d)(
        context, type_id, *extents
    )
    data_pointer(tensor).value = address
    return tensor


class Builder:
    """Makes ggml nodes from ``model.steps``; every node is appended to ``graph`` at once, so node order is call
    order."""

    def __init__(
        self,
        held: HeldBlock,
        shape: BatchShape,
        settings: GraphSettings,
        context: int,
        graph: int,
        inputs: Inputs,
        residual: int,
    ) -> None:
        """``residual`` is the tensor of the residual stream that enters."""
        self._held, self._shape, self._settings, self._context = held, shape, settings, context
        self._base, self._graph, self._inputs, self._residual = ggml().base, graph, inputs, residual
        self.has_state = held.has_state
        self.state_pointers: tuple[list[StatePointer], ...] = ([], [])
        """Where the addresses of the block's state are written: of its keys, of its values."""
        self.part_pointers: list[tuple[ctypes.c_void_p, ...]] = []
        """Where the addresses of parts are written, for every piece."""
        self._weights: dict[str, list[tuple[int, int]]] = {}
        self.starts = [self._n_nodes]
        """From which node of the graph on each piece is needed, and those before it are not."""
        for number, piece in enumerate(held.pieces):
            tensors = [self._weight(part) for part in piece.parts]
            for part, tensor in zip(piece.parts, tensors, strict=True):
                self._weights.setdefault(part.role, []).append((number, tensor))
            self.part_pointers.append(tuple(data_pointer(tensor) for tensor in tensors))

    def build(self) -> int:
        """All nodes of the block; returns its result."""
        result: int = self._held.block.graph.build(self)
        self._enter(len(self.part_pointers) - 1)
        return result

    @property
    def _n_nodes(self) -> int:
        return int(self._base.ggml_graph_n_nodes(self._graph))

    def _weight(self, part: Part) -> int:
        tensor = new_tensor(self._context, part.type_id, (part.columns.size, part.rows.size), _PLACEHOLDER)
        repacker = self._settings.repacker
        if repacker is not None and packs(repacker, part):
            repacker.mark(tensor)
        return tensor

    def _enter(self, piece: int) -> None:
        """From the next node on, ``piece`` is needed and the ones before it are not."""
        assert piece >= len(self.starts) - 1, "a block's slots must stand in the order in which its graph uses them"
        while len(self.starts) <= piece:
            self.starts.append(self._n_nodes)

    def _append(self, tensor: int) -> int:
        self._base.ggml_build_forward_expand(self._graph, tensor)
        return tensor

    def residual(self) -> int:
        return self._residual

    def has(self, role: str) -> bool:
        return role in self._weights

    def rms_norm(self, x: int, role: str, eps: float) -> int:
        return self._times(self._base.ggml_rms_norm(self._context, x, eps), role)

    def layer_norm(self, x: int, role: str, eps: float) -> int:
        return self._times(self._base.ggml_norm(self._context, x, eps), role)

    def _times(self, x: int, role: str) -> int:
        [(piece, weight)] = self._weights[role]
        self._enter(piece)
        return self._append(self._base.ggml_mul(self._context, x, weight))

    def matmul(self, role: str, x: int) -> int:
        result = 0
        for piece, weight in self._weights[role]:
            self._enter(piece)
            rows = self._append(self._base.ggml_mul_mat(self._context, weight, x))
            result = self._append(self._base.ggml_concat(self._context, result, rows, 0)) if result else rows
        return result

    def rope(self, x: int, rope: Rope, head_dim: int, factors_role: str | None) -> int:
        factors = None
        if factors_role:
            [(piece, factors)] = self._weights[factors_role]
            self._enter(piece)
        style = ROPE_NEOX if rope.style is RopeStyle.NEOX else ROPE_NORMAL
        turned = self._base.ggml_rope_ext(
            self._context, self.heads(x, head_dim), self._inputs.positions, factors, rope.n_dims, style,
            rope.original_context, rope.base, rope.frequency_scale, rope.extrapolation, rope.attention_factor,
            32.0, 1.0,
        )  # fmt: skip
        return self._append(turned)

    def attention(self, q: int, k: int, v: int, head_dim: int, scale: float) -> int:
        base, n_tokens = self._base, self._shape.n_tokens
        width = self._extent(v)
        to_keys, to_values = self.state_pointers
        keys = self._store(to_keys, base.ggml_reshape_2d(self._context, k, width, n_tokens), width)
        values = self._store(to_values, v, width)
        result = 0
        for heads, kv_heads in self._held.head_runs():
            queries = base.ggml_permute(self._context, self._some_heads(self.heads(q, head_dim), heads), 0, 2, 1, 3)
            mask, seen = self._inputs.mask, [self._see(*cache, kv_heads, head_dim) for cache in (keys, values)]
            attended = base.ggml_flash_attn_ext(self._context, queries, *seen, mask, scale, 0.0, 0.0)
            base.ggml_prec_set_acc(attended, PREC_F32)
            rows = self._append(base.ggml_reshape_2d(self._context, attended, heads.size * head_dim, n_tokens))
            result = self._append(base.ggml_concat(self._context, result, rows, 0)) if result else rows
        return result

    def heads(self, x: int, head_dim: int) -> int:
        """``x`` with the shape [head_dim, n_heads, n_tokens]."""
        width, _, last, _ = Tensor.from_address(x).ne
        if width == head_dim and last == self._shape.n_tokens:
            return x
        return int(self._base.ggml_reshape_3d(self._context, x, head_dim, width // head_dim, self._shape.n_tokens))

    def _some_heads(self, x: int, heads: Span) -> int:
        """Some of the heads of ``x``, which has the shape [head_dim, n_heads, n_tokens]."""
        tensor = Tensor.from_address(x)
        head_dim, n_heads, n_tokens = tensor.ne[:3]
        if heads.size == n_heads:
            return x
        offset = heads.start * tensor.nb[1]
        strides = tensor.nb[1], tensor.nb[2]
        return int(self._base.ggml_view_3d(self._context, x, head_dim, heads.size, n_tokens, *strides, offset))

    def _store(self, pointers: list[StatePointer], rows: int, width: int) -> tuple[int, list[StatePointer]]:
        """Writes ``rows`` to their cells; returns the cache, and where addresses in it are written."""
        cache = new_tensor(self._context, self._settings.kv_type.id, (width, self._settings.n_cells), _PLACEHOLDER)
        written = self._append(self._base.ggml_set_rows(self._context, cache, rows, self._inputs.cells))
        pointers.extend(StatePointer(data_pointer(tensor)) for tensor in (cache, written))
        return cache, pointers

    def _see(self, cache: int, pointers: list[StatePointer], heads: Span, head_dim: int) -> int:
        """Some heads of the cache, seen as [head_dim, n_kv, n_heads]."""
        kind, width = self._settings.kv_type, self._extent(cache)
        cell_bytes, head_bytes = kind.row_bytes(width), kind.row_bytes(head_dim)
        offset = heads.start * head_bytes
        seen = self._base.ggml_view_3d(
            self._context, cache, head_dim, self._shape.n_kv, heads.size, cell_bytes, head_bytes, offset
        )
        pointers.append(StatePointer(data_pointer(seen), offset))
        return int(seen)

    def add(self, x: int, y: int) -> int:
        return self._append(self._base.ggml_add(self._context, x, y))

    def scale(self, x: int, factor: float) -> int:
        return self._append(self._base.ggml_scale(self._context, x, factor))

    def swiglu(self, gate: int, up: int) -> int:
        return self._append(self._base.ggml_swiglu_split(self._context, gate, up))

    def _extent(self, tensor: int) -> int:
        return int(Tensor.from_address(tensor).ne[0])
