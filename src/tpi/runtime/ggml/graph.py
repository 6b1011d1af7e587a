"""Builds the ggml graph of one block for one batch shape; runs it piece by piece with swapped data pointers.

One graph serves all layers whose slices have the same shapes. A block of several pieces has one graph for placing its
intermediates, and one sub-graph per piece for running it while only that piece is held. Nothing here allocates weights,
KV cache or activations.
"""

import ctypes
from collections.abc import Sequence

import numpy as np

from tpi.model.spec import BlockKind, ModelSpec
from tpi.runtime.ggml.binding import ComputePlan, InitParams, Tensor, ggml
from tpi.runtime.ggml.builder import Addresses, BatchShape, Builder, GraphSettings, context_bytes
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.protocols import Float32Array
from tpi.weights.layout import Piece


class BlockGraph:
    """The graph of one block kind and batch shape. A context manager: owns the C context with its tensors.

    ``run_piece`` is called for every piece in order; ``result`` is valid from the last one until any other graph runs.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kind: BlockKind,
        pieces: Sequence[Piece],
        shape: BatchShape,
        settings: GraphSettings,
        addresses: Addresses,
    ) -> None:
        self._lib = ggml()
        self._context = self._lib.base.ggml_init(InitParams(context_bytes(pieces), None, True))
        try:
            builder = Builder(spec, kind, pieces, shape, settings, addresses, self._context)
            result = builder.build()
            self._lib.base.ggml_set_output(result)
            self._steps = builder.finish()
        except BaseException:
            self.close()
            raise
        self._pointers = builder.pointers
        self.graph = builder.graph
        self._result = Tensor.from_address(result)
        self._builder = builder
        self._plans: list[ComputePlan] = []
        self._whole = ComputePlan()
        self._first_row = 0
        self._values: Float32Array = np.empty((0, 0), dtype=np.float32)

    def __enter__(self) -> "BlockGraph":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._lib.base.ggml_free(self._context)
            self._context = None

    def place(self, compute: Compute, lane: int = 0) -> None:
        """Places the intermediates in the lane's memory and plans the runs; before the first ``run_piece``.

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
            for rows in self._builder.row_inputs:
                rows.pointer.value = rows.address + first * rows.row_bytes

    def point_cache(self, k_address: int, v_address: int) -> None:
        """Points the graph at the KV cache of the layer that runs next."""
        for pointer in self._builder.k_pointers:
            pointer.value = k_address
        for pointer in self._builder.v_pointers:
            pointer.value = v_address

    def run_piece(self, compute: Compute, number: int, part_addresses: Sequence[int]) -> None:
        """Runs the nodes that need piece ``number`` of the block, whose parts lie at ``part_addresses``.

        Raises:
            KernelError: see ``Compute.run``.
        """
        step = self._steps[number]
        for pointer, address in zip(step.pointers, part_addresses, strict=True):
            pointer.value = address
        if step.n_nodes:
            compute.run(step.graph, self._plans[number])

    def run_whole(self, compute: Compute, part_addresses: Sequence[int]) -> None:
        """Runs all of it at once, where all pieces of the block are in memory; their parts, one piece's after the
        other's, lie at ``part_addresses``.

        Raises:
            KernelError: see ``Compute.run``.
        """
        for pointer, address in zip(self._pointers, part_addresses, strict=True):
            pointer.value = address
        compute.run(self.graph, self._whole)

    @property
    def whole_plan(self) -> ComputePlan:
        """How all of it is run at once."""
        return self._whole

    def addresses(self, part_addresses: Sequence[int], cache: tuple[int, int] | None) -> tuple[list[int], list[int]]:
        """Where C is to write which addresses before it runs all at once for a layer: of its parts, and of its keys and
        values in the cache, for a block that has some."""
        places = [ctypes.addressof(pointer) for pointer in self._pointers]
        values = list(part_addresses)
        if cache is not None:
            for pointers, address in zip((self._builder.k_pointers, self._builder.v_pointers), cache, strict=True):
                places += [ctypes.addressof(pointer) for pointer in pointers]
                values += [address] * len(pointers)
        return places, values

    def result(self) -> Float32Array:
        """The block's result, f32 [n_tokens, width]: a view of the intermediates' buffer."""
        return self._values


def values_of(tensor: Tensor) -> Float32Array:
    """A placed tensor's values, f32 [rows, width]: a view of its memory."""
    width, rows = tensor.ne[0], tensor.ne[1]
    buffer = (ctypes.c_float * (width * rows)).from_address(tensor.data)
    return np.frombuffer(buffer, dtype=np.float32).reshape(rows, width)
