"""Blocks as one ggml graph for one batch shape: one block, a run of them, or a whole pass. Runs it at once or piece by
piece, with swapped data pointers.

The graph of one block serves all blocks that are computed alike and have slices of the same shapes. Where a block is
several pieces, each has a sub-graph, to be run while only that piece is held. Blocks of one graph compute what they
would each in a graph of their own, bit for bit. Nothing here allocates weights, state or activations.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from tpi.runtime.ggml.binding import ComputePlan, InitParams, Tensor, ggml
from tpi.runtime.ggml.builder import (
    Addresses,
    BatchShape,
    Builder,
    GraphSettings,
    HeldBlock,
    Inputs,
    graph_bytes,
    max_nodes,
    tensor_bytes,
)
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.protocols import Float32Array

StateAddresses = tuple[int, ...]
"""Where a block's state lies: its keys, its values."""


@dataclass(frozen=True)
class _Step:
    """One piece's share of the graph, and where its parts' addresses are written."""

    graph: int
    n_nodes: int
    pointers: tuple[ctypes.c_void_p, ...]


class Graph:
    """Blocks one after the other; what one gives is added to the residual stream, which enters the next. A context
    manager: owns the C context with its tensors.

    Pieces are numbered through all blocks. ``result`` is valid until any other graph of the same lane runs.
    """

    def __init__(
        self,
        blocks: Sequence[HeldBlock],
        shape: BatchShape,
        settings: GraphSettings,
        addresses: Addresses,
    ) -> None:
        self._base = ggml().base
        pieces = [piece for held in blocks for piece in held.pieces]
        size = sum(tensor_bytes(held.pieces) + int(self._base.ggml_tensor_overhead()) for held in blocks)
        n_nodes = sum(max_nodes(held.pieces) for held in blocks)
        size += graph_bytes(n_nodes) + sum(graph_bytes(max_nodes([piece])) for piece in pieces)
        self._context = self._base.ggml_init(InitParams(size, None, True))
        try:
            self.graph: int = self._base.ggml_new_graph_custom(self._context, n_nodes, False)
            inputs = Inputs(self._context, shape, addresses)
            builders: list[Builder] = []
            result, residual = 0, inputs.residual
            for held in blocks:
                if builders:
                    residual = self._base.ggml_add(self._context, result, residual)
                    self._base.ggml_build_forward_expand(self.graph, residual)
                builder = Builder(held, shape, settings, self._context, self.graph, inputs, residual)
                result = builder.build()
                builders.append(builder)
            self._base.ggml_set_output(result)
            self._steps = self._cut(builders)
        except BaseException:
            self.close()
            raise
        self._part_pointers = tuple(pointer for step in self._steps for pointer in step.pointers)
        self._state_pointers = [builder.state_pointers for builder in builders if builder.has_state]
        self._row_inputs = inputs.rows
        self._result = Tensor.from_address(result)
        self._plans: list[ComputePlan] = []
        self._whole = ComputePlan()
        self._first_row = 0
        self._values: Float32Array = np.empty((0, 0), dtype=np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._base.ggml_free(self._context)
            self._context = None

    def place(self, compute: Compute, lane: int = 0) -> None:
        """Places the intermediates in the lane's memory and plans the runs; before anything is run.

        Raises:
            KernelError: see ``Compute.place``.
        """
        compute.place(self.graph, lane)
        self._plans = [compute.plan(step.graph) for step in self._steps]
        self._whole = compute.plan(self.graph)
        self._values = values_of(self._result)

    def point_rows(self, first: int) -> None:
        """Points the graph at the pass's rows from number ``first`` on."""
        if first != self._first_row:
            self._first_row = first
            for rows in self._row_inputs:
                rows.pointer.value = rows.address + first * rows.row_bytes

    def point_state(self, states: Sequence[StateAddresses]) -> None:
        """Points the graph at the state of the blocks that run next, those of them that have some."""
        for pointer, address in self._placed_states(states):
            pointer.value = address

    def point_parts(self, part_addresses: Sequence[int]) -> None:
        """Points the graph at the parts of all pieces, one piece's after the other's."""
        for pointer, address in zip(self._part_pointers, part_addresses, strict=True):
            pointer.value = address

    def run_piece(self, compute: Compute, number: int, part_addresses: Sequence[int]) -> None:
        """Runs the nodes that need piece ``number``, whose parts lie at ``part_addresses``.

        Raises:
            KernelError: see ``Compute.run``.
        """
        step = self._steps[number]
        for pointer, address in zip(step.pointers, part_addresses, strict=True):
            pointer.value = address
        if step.n_nodes:
            compute.run(step.graph, self._plans[number])

    def run(self, compute: Compute) -> None:
        """Runs all of it at once, over the parts that it was pointed at.

        Raises:
            KernelError: see ``Compute.run``.
        """
        compute.run(self.graph, self._whole)

    @property
    def whole_plan(self) -> ComputePlan:
        """How all of it is run at once."""
        return self._whole

    def addresses(self, part_addresses: Sequence[int], states: Sequence[StateAddresses]) -> tuple[list[int], list[int]]:
        """Where C is to write which addresses before it runs all at once: of the parts, and of the states."""
        places = [ctypes.addressof(pointer) for pointer in self._part_pointers]
        values = list(part_addresses)
        for pointer, address in self._placed_states(states):
            places.append(ctypes.addressof(pointer))
            values.append(address)
        return places, values

    def result(self) -> Float32Array:
        """What the last block gives, f32 [n_tokens, width]: a view of the intermediates' buffer."""
        return self._values

    def _placed_states(self, states: Sequence[StateAddresses]) -> Iterator[tuple[ctypes.c_void_p, int]]:
        for places, addresses in zip(self._state_pointers, states, strict=True):
            for pointers, address in zip(places, addresses, strict=True):
                for entry in pointers:
                    yield entry.pointer, address + entry.offset

    def _cut(self, builders: Sequence[Builder]) -> list[_Step]:
        """Cuts the finished graph into one sub-graph per piece."""
        pointers = [entry for builder in builders for entry in builder.part_pointers]
        n_nodes = int(self._base.ggml_graph_n_nodes(self.graph))
        if len(pointers) == 1:
            return [_Step(self.graph, n_nodes, pointers[0])]
        starts = [start for builder in builders for start in builder.starts]
        steps = []
        for places, (start, stop) in zip(pointers, pairwise([*starts, n_nodes]), strict=True):
            graph = self._base.ggml_new_graph_custom(self._context, max(stop - start, 1), False)
            for index in range(start, stop):
                self._base.ggml_graph_add_node(graph, self._base.ggml_graph_node(self.graph, index))
            steps.append(_Step(graph, stop - start, places))
        return steps


def values_of(tensor: Tensor) -> Float32Array:
    """A placed tensor's values, f32 [rows, width]: a view of its memory."""
    width, rows = tensor.ne[0], tensor.ne[1]
    buffer = (ctypes.c_float * (width * rows)).from_address(tensor.data)
    return np.frombuffer(buffer, dtype=np.float32).reshape(rows, width)
