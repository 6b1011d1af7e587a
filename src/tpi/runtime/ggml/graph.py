"""Blocks as one ggml graph for one batch shape: one block, a run of them, or a whole pass. Runs it at once or piece by
piece, with swapped data pointers.

The graph of one block serves all blocks that are computed alike and have slices of the same shapes. Where a block is
several pieces, each has a sub-graph, to be run while only that piece is held; where experts are chosen, the graph is
interrupted. Blocks of one graph compute what they would each in a graph of their own, bit for bit. Nothing here
allocates weights, state or activations.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from tpi.runtime.ggml.binding import ComputePlan, InitParams, Tensor, ggml
from tpi.runtime.ggml.builder import Builder, graph_bytes, max_nodes, tensor_bytes
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.held import GraphSettings, Held
from tpi.runtime.ggml.inputs import Addresses, BatchShape, Inputs
from tpi.runtime.ggml.nodes import Place
from tpi.runtime.protocols import Float32Array

StateAddresses = tuple[int, ...]
"""Where a block's state lies: its keys, its values; or of every run what is read, then what is written."""


@dataclass(frozen=True)
class _Step:
    """Nodes between two pieces or interruptions, and where the addresses of the piece's parts are written: place,
    number of the part, offset."""

    graph: int
    n_nodes: int
    piece: int
    is_second_half: bool
    places: tuple[tuple[ctypes.c_void_p, int, int], ...]
    plan: ComputePlan


class Graph:
    """Blocks one after the other; what one gives is added to the residual stream, which enters the next, or is the
    stream, or is left to the next. A context manager: owns the C context with its tensors.

    Pieces are numbered through all blocks. ``result`` is valid until any other graph of the same lane runs.
    """

    def __init__(
        self,
        blocks: Sequence[Held],
        shape: BatchShape,
        settings: GraphSettings,
        addresses: Addresses,
    ) -> None:
        self._base = ggml().base
        n_nodes = sum(max_nodes(held, shape) for held in blocks)
        n_steps = sum(len(held.pieces) for held in blocks) + 1
        size = sum(tensor_bytes(held, shape) + int(self._base.ggml_tensor_overhead()) for held in blocks)
        size += graph_bytes(n_nodes) * 2 + n_steps * graph_bytes(1)
        self._context = self._base.ggml_init(InitParams(size, None, True))
        try:
            self.graph: int = self._base.ggml_new_graph_custom(self._context, n_nodes, False)
            inputs = Inputs(self._context, shape, addresses)
            builders: list[Builder] = []
            result = summed = left = 0
            residual = inputs.expert_rows if blocks[0].is_expert else inputs.residual
            for number, held in enumerate(blocks):
                if number:
                    residual, summed, left = self._follow(blocks[number - 1], result, residual)
                elif held.summed_width:
                    summed = inputs.summed(held.summed_width)
                    left = inputs.left(sum(held.left)) if held.left else 0
                builder = Builder(held, shape, settings, self._context, self.graph, inputs)
                result = builder.build(residual, summed, left)
                builders.append(builder)
            self._base.ggml_set_output(result)
            nodes = range(int(self._base.ggml_graph_n_nodes(self.graph)))
            self._row_inputs = inputs.rows(self._base.ggml_graph_node(self.graph, index) for index in nodes)
            self._steps = self._cut(builders)
        except BaseException:
            self.close()
            raise
        part_places = [places for builder in builders for piece in builder.part_places for places in piece]
        self._part_places = [(place, part) for part, places in enumerate(part_places) for place in places]
        self._state_places = [builder.state_places for builder in builders if builder.state_places]
        self._choice = builders[0].choice
        self._result = Tensor.from_address(result)
        self._whole = ComputePlan()
        self._first_row = 0
        self._values: Float32Array = np.empty((0, 0), dtype=np.float32)
        self._rows = self._values
        self._chosen: npt.NDArray[np.int32] = np.empty((0, 0), dtype=np.int32)

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
        for step in self._steps:
            ctypes.pointer(step.plan)[0] = compute.plan(step.graph)
        self._whole = compute.plan(self.graph)
        self._values = values_of(self._result)
        if self._choice is not None:
            self._chosen = _integers_of(Tensor.from_address(self._choice.ids))
            self._rows = values_of(Tensor.from_address(self._choice.rows))

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
        for place, part in self._part_places:
            place.pointer.value = part_addresses[part] + place.offset

    @property
    def n_nodes(self) -> int:
        return int(self._base.ggml_graph_n_nodes(self.graph))

    @property
    def chooses(self) -> bool:
        """Experts are chosen in it: it is run in halves."""
        return self._choice is not None

    def choice(self) -> tuple[npt.NDArray[np.int32], Float32Array]:
        """After the first half: what was chosen, [n_tokens, n_used], and what the experts compute, f32 [n_tokens,
        n_embd]; views of intermediates."""
        return self._chosen, self._rows

    def scores(self) -> Float32Array:
        """By what was chosen, f32 [n_tokens, n_experts]: a view of intermediates."""
        assert self._choice is not None
        return values_of(Tensor.from_address(self._choice.scores))

    @property
    def choice_piece(self) -> int:
        """The last piece that the first half needs."""
        return max(step.piece for step in self._steps if step.n_nodes and not step.is_second_half)

    def run_piece(
        self, compute: Compute, number: int, part_addresses: Sequence[int], is_second_half: bool = False
    ) -> None:
        """Runs the nodes that need piece ``number``, whose parts lie at ``part_addresses``; of a graph that is
        interrupted those of one half.

        Raises:
            KernelError: see ``Compute.run``.
        """
        for step in self._steps:
            if step.piece == number and step.is_second_half == is_second_half:
                for pointer, part, offset in step.places:
                    pointer.value = part_addresses[part] + offset
                if step.n_nodes:
                    compute.run(step.graph, step.plan)

    def run_half(self, compute: Compute, is_second_half: bool) -> None:
        """Runs one half of a graph that is interrupted, over the parts that it was pointed at.

        Raises:
            KernelError: see ``Compute.run``.
        """
        for step in self._steps:
            if step.is_second_half == is_second_half and step.n_nodes:
                compute.run(step.graph, step.plan)

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
        places = [ctypes.addressof(place.pointer) for place, _ in self._part_places]
        values = [part_addresses[part] + place.offset for place, part in self._part_places]
        for pointer, address in self._placed_states(states):
            places.append(ctypes.addressof(pointer))
            values.append(address)
        return places, values

    def result(self) -> Float32Array:
        """What the last block gives, f32 [n_tokens, width]: a view of the intermediates' buffer."""
        return self._values

    def _follow(self, before: Held, result: int, residual: int) -> tuple[int, int, int]:
        """The residual stream, the sum, and what was left, that enter the block after ``before``."""
        if before.leaves is not None:
            tensor = Tensor.from_address(result)
            (width, n_rows), stride, n = tensor.ne[:2], tensor.nb[1], before.leaves.n_summed
            summed = self._base.ggml_view_2d(self._context, result, n, n_rows, stride, 0)
            left = self._base.ggml_view_2d(self._context, result, width - n, n_rows, stride, 4 * n)
            return residual, summed, left
        if before.is_kept:
            return residual, result, 0
        if before.is_own:
            return result, 0, 0
        added = self._base.ggml_add(self._context, result, residual)
        self._base.ggml_build_forward_expand(self.graph, added)
        return added, 0, 0

    def _placed_states(self, states: Sequence[StateAddresses]) -> Iterator[tuple[ctypes.c_void_p, int]]:
        for lists, addresses in zip(self._state_places, states, strict=True):
            for places, address in zip(lists, addresses, strict=True):
                for place in places:
                    yield place.pointer, address + place.offset

    def _cut(self, builders: Sequence[Builder]) -> list[_Step]:
        """Cuts the finished graph into sub-graphs, by piece and at the interruption."""
        n_nodes = int(self._base.ggml_graph_n_nodes(self.graph))
        starts = [start for builder in builders for start in builder.starts]
        places = [piece for builder in builders for piece in builder.part_places]
        choices = [builder.choice for builder in builders if builder.choice is not None]
        assert len(builders) == 1 or not choices, "a block with experts has a graph of its own"
        steps = []
        for number, (start, stop) in enumerate(pairwise([*starts, n_nodes])):
            middle = min(max(choices[0].n_nodes, start), stop) if choices else stop
            for first, last, is_second_half in ((start, middle, False), (middle, stop, True)):
                if not is_second_half or choices:
                    graph = self._sub_graph(first, last, n_nodes)
                    steps.append(
                        _Step(graph, last - first, number, is_second_half, _flat(places[number]), ComputePlan())
                    )
        return steps

    def _sub_graph(self, start: int, stop: int, n_nodes: int) -> int:
        if (start, stop) == (0, n_nodes):
            return self.graph
        graph: int = self._base.ggml_new_graph_custom(self._context, max(stop - start, 1), False)
        for index in range(start, stop):
            self._base.ggml_graph_add_node(graph, self._base.ggml_graph_node(self.graph, index))
        return graph


def _flat(parts: Sequence[Sequence[Place]]) -> tuple[tuple[ctypes.c_void_p, int, int], ...]:
    return tuple((place.pointer, number, place.offset) for number, places in enumerate(parts) for place in places)


def _integers_of(tensor: Tensor) -> npt.NDArray[np.int32]:
    """A placed tensor's integers, [rows, width], whose rows may lie apart: a view of its memory."""
    width, rows, stride = tensor.ne[0], tensor.ne[1], tensor.nb[1]
    buffer = (ctypes.c_int32 * (stride // 4 * (rows - 1) + width)).from_address(tensor.data)
    flat = np.frombuffer(buffer, dtype=np.int32)
    return np.lib.stride_tricks.as_strided(flat, (rows, width), (stride, 4), writeable=False)


def values_of(tensor: Tensor) -> Float32Array:
    """A placed tensor's values, f32 [rows, width]: a view of its memory."""
    width, rows = tensor.ne[0], tensor.ne[1]
    buffer = (ctypes.c_float * (width * rows)).from_address(tensor.data)
    return np.frombuffer(buffer, dtype=np.float32).reshape(rows, width)
