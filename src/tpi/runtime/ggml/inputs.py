"""What a pass brings into graphs, as tensors of one graph, and where their data's addresses are written. One thread."""

import ctypes
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tpi.runtime.folding import rows_of
from tpi.runtime.ggml.binding import TYPE_F16, TYPE_F32, TYPE_I32, TYPE_I64, Tensor, ggml
from tpi.runtime.passes import BLOCK_CELLS

PLACEHOLDER = 4096
"""A data pointer that says 'not yours to allocate' until the real one is written."""


@dataclass(frozen=True)
class Group:
    """Sequences of a pass, one after the other, with ``n_rows`` rows each; ``n_kv`` cells are gathered for each.
    ``fold`` heads are rows of one (``runtime.folding``)."""

    n_sequences: int
    n_rows: int
    n_kv: int
    fold: int = 1

    @property
    def mask_values(self) -> tuple[int, int, int]:
        """Of all sequences: how many sequences, rows, cells."""
        return self.n_sequences, rows_of(self.n_rows, self.fold), self.n_kv


@dataclass(frozen=True)
class Sight:
    """What attention of a window looks at: cells 0 to ``n_kv`` behind a mask; or, if there are ``groups``, which have
    all rows, every sequence at its own. ``fold``: see ``Group``."""

    n_kv: int = 0
    groups: tuple[Group, ...] = ()
    fold: int = 1


Seen = tuple[tuple[int, Sight], ...]
"""What attention of every window looks at."""


@dataclass(frozen=True)
class BatchShape:
    """What a graph is built for: ``n_tokens`` rows; what attention of each window looks at; and the lengths of the runs
    of rows that belong to one sequence each."""

    n_tokens: int
    seen: Seen = ()
    runs: tuple[int, ...] = ()

    def sight(self, window: int) -> Sight:
        """What attention of this window looks at."""
        return dict(self.seen)[window]

    @property
    def n_groups(self) -> int:
        """Of all windows, at most."""
        return max((len(sight.groups) for _, sight in self.seen), default=0)


@dataclass(frozen=True)
class Addresses:
    """Where the inputs of graphs lie; the arrays outlive the graphs.

    ``residual`` and ``embeddings`` f32 [n_tokens, n_embd], ``looked_up`` f32 [n_tokens, n_looked_up], ``summed`` and
    ``left`` f32 [n_tokens, width], ``positions`` i32 [n_tokens], ``temperature`` f32 [n_tokens]; of every window
    ``cells`` i64 [n_tokens], and ``masks`` f16 [n_tokens, n_kv] or of every group [n_sequences, n_rows, n_kv], where
    heads are rows of one with a row for each of these, and ``blocks`` of cells i32 [n_sequences, n_kv / BLOCK_CELLS];
    ``gathered`` keys and values of a group; what is ``attended`` by groups, f32 [n_tokens, n_heads, value_dim]; of
    experts ``chosen`` i32 [n_tokens, n_used], ``outputs`` f32 [n_tokens, n_used, n_embd], ``expert_rows`` f32 [n_rows,
    n_embd], ``zeros`` i32 [n_rows].
    """

    n_embd: int
    n_looked_up: int
    residual: int
    embeddings: int
    looked_up: int
    summed: int
    summed_stride: int
    """Values from row to row of parts, whose rows lie closer."""
    positions: int
    temperatures: Mapping[object, int]
    cells: Mapping[int, int]
    masks: Mapping[int, int]
    blocks: Mapping[int, int] = field(default_factory=dict)
    gathered: tuple[int, int] = (0, 0)
    attended: int = 0
    left: int = 0
    left_stride: int = 0
    chosen: int = 0
    outputs: int = 0
    expert_rows: int = 0
    zeros: int = 0


@dataclass(frozen=True)
class RowInput:
    """Where a graph's rows begin: the pointer to them, the first row's address, bytes from row to row."""

    pointer: ctypes.c_void_p
    address: int
    row_bytes: int


def data_pointer(tensor: int) -> ctypes.c_void_p:
    """Where the tensor keeps its data's address."""
    return ctypes.c_void_p.from_address(tensor + Tensor.data.offset)


def new_tensor(context: int, type_id: int, extents: tuple[int, ...], address: int = PLACEHOLDER) -> int:
    """A tensor of one to four dimensions whose data are not the graph's to place."""
    sizes = (ctypes.c_int64 * len(extents))(*extents)
    tensor = int(ggml().base.ggml_new_tensor(context, type_id, len(extents), sizes))
    data_pointer(tensor).value = address
    return tensor


class Inputs:
    """What a pass brings, as tensors that all blocks of a graph share."""

    def __init__(self, context: int, shape: BatchShape, addresses: Addresses) -> None:
        self._context, self._shape, self._addresses = context, shape, addresses
        self._made: dict[object, int] = {}
        self._rows: dict[int, RowInput] = {}

    @property
    def n_embd(self) -> int:
        return self._addresses.n_embd

    @property
    def residual(self) -> int:
        return self._floats("residual", self._addresses.n_embd, self._addresses.residual)

    @property
    def embeddings(self) -> int:
        return self._floats("embeddings", self._addresses.n_embd, self._addresses.embeddings)

    @property
    def looked_up(self) -> int:
        return self._floats("looked up", self._addresses.n_looked_up, self._addresses.looked_up)

    def summed(self, width: int) -> int:
        extents, stride = (width, self._shape.n_tokens), 4 * self._addresses.summed_stride
        return self._make(("summed", width), TYPE_F32, extents, self._addresses.summed, stride)

    def left(self, width: int) -> int:
        extents, stride = (width, self._shape.n_tokens), 4 * self._addresses.left_stride
        return self._make("left", TYPE_F32, extents, self._addresses.left, stride)

    @property
    def positions(self) -> int:
        return self._make("positions", TYPE_I32, (self._shape.n_tokens,), self._addresses.positions, 4)

    def temperature(self, kind: object) -> int:
        """f32 [n_tokens, 1, 1]: a factor for every token."""
        address = self._addresses.temperatures[kind]
        return self._make(("temperature", kind), TYPE_F32, (1, 1, self._shape.n_tokens), address, 4)

    def cells(self, window: int) -> int:
        return self._make(("cells", window), TYPE_I64, (self._shape.n_tokens,), self._addresses.cells[window], 8)

    def mask(self, window: int) -> int:
        sight = self._shape.sight(window)
        extents = sight.n_kv, self._shape.n_tokens
        if sight.fold > 1:  # such passes are not computed in parts
            extents = sight.n_kv, rows_of(self._shape.n_tokens, sight.fold)
        return self._make(("mask", window), TYPE_F16, extents, self._addresses.masks[window], 2 * extents[0])

    def group_mask(self, window: int, number: int) -> int:
        """Of the sequences of a group, f16 [n_sequences, 1, n_rows, n_kv], with ``rows_of`` as rows."""
        groups = self._shape.sight(window).groups
        first = sum(math.prod(group.mask_values) for group in groups[:number])
        n_sequences, n_rows, n_kv = groups[number].mask_values
        extents = n_kv, n_rows, 1, n_sequences
        return new_tensor(self._context, TYPE_F16, extents, self._addresses.masks[window] + 2 * first)

    def group_blocks(self, window: int, number: int) -> int:
        """The blocks of cells of the sequences of a group, i32 [n_sequences * n_kv / BLOCK_CELLS]."""
        n_blocks = [group.n_sequences * group.n_kv // BLOCK_CELLS for group in self._shape.sight(window).groups]
        address = self._addresses.blocks[window] + 4 * sum(n_blocks[:number])
        return new_tensor(self._context, TYPE_I32, (n_blocks[number],), address)

    @property
    def gathered(self) -> tuple[int, int]:
        """Where the keys and the values of a group are put."""
        return self._addresses.gathered

    @property
    def attended(self) -> int:
        """Where what groups attend to is put: heads of all rows, one after the other."""
        return self._addresses.attended

    def chosen(self, n_used: int) -> int:
        return self._make("chosen", TYPE_I32, (n_used, self._shape.n_tokens), self._addresses.chosen, 4 * n_used)

    def outputs(self, n_used: int) -> int:
        extents = self._addresses.n_embd, n_used, self._shape.n_tokens
        return self._make("outputs", TYPE_F32, extents, self._addresses.outputs, 4 * extents[0] * n_used)

    @property
    def expert_rows(self) -> int:
        return self._floats("expert rows", self._addresses.n_embd, self._addresses.expert_rows)

    @property
    def zeros(self) -> int:
        """The number of the only matrix, for every row."""
        return self._make("zeros", TYPE_I32, (1, self._shape.n_tokens), self._addresses.zeros, 4)

    def _floats(self, name: object, width: int, address: int) -> int:
        return self._make(name, TYPE_F32, (width, self._shape.n_tokens), address, 4 * width)

    def _make(self, name: object, type_id: int, extents: tuple[int, ...], address: int, row_bytes: int) -> int:
        """An input with one row per token, which may begin at a later row than the first."""
        if name not in self._made:
            tensor = self._made[name] = new_tensor(self._context, type_id, extents, address)
            self._rows[tensor] = RowInput(data_pointer(tensor), address, row_bytes)
        return self._made[name]

    def rows(self, nodes: Iterable[int]) -> list[RowInput]:
        """Where all inputs begin, and what of ``nodes`` are views of them: a view keeps the address that its source had
        when it was placed."""
        found = list(self._rows.values())
        for node in nodes:
            tensor = Tensor.from_address(node)
            source = self._rows.get(tensor.view_src or 0)
            if source is not None:
                found.append(RowInput(data_pointer(node), source.address + tensor.view_offs, source.row_bytes))
        return found
