"""All blocks as one graph: for a rank that is alone and has all its weights in memory, one token at a time.

Computes what the graphs of single blocks compute, bit for bit, with one start of the compute threads instead of one per
block. Addresses are written once, because nothing moves any more. Allocates no weights, KV cache or activations.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from tpi.model.spec import Block, BlockKind, ModelSpec
from tpi.runtime.ggml.binding import TYPE_F32, ComputePlan, InitParams, Tensor, ggml
from tpi.runtime.ggml.builder import Addresses, BatchShape, Builder, GraphSettings, Joint, context_bytes, max_nodes
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.graph import values_of
from tpi.runtime.kvcache import KvCache
from tpi.runtime.protocols import Float32Array
from tpi.weights.layout import Piece


class PassGraph:
    """A context manager: owns the C context with its tensors."""

    def __init__(
        self,
        spec: ModelSpec,
        blocks: Sequence[tuple[Block, Sequence[Piece]]],
        shape: BatchShape,
        settings: GraphSettings,
        addresses: Addresses,
        cache: KvCache,
        resident: Mapping[int, Sequence[int]],
    ) -> None:
        """``blocks`` are all of the model, the head last; ``resident`` has the addresses of every block's parts."""
        self._base = ggml().base
        size = sum(context_bytes(pieces) + int(self._base.ggml_tensor_overhead()) for _, pieces in blocks)
        n_nodes = sum(max_nodes(pieces) for _, pieces in blocks)
        size += int(self._base.ggml_graph_overhead_custom(n_nodes, False))
        self._context = self._base.ggml_init(InitParams(size, None, True))
        self._graph: int = self._base.ggml_new_graph_custom(self._context, n_nodes, False)
        try:
            result = self._build(spec, blocks, shape, settings, addresses, cache, resident)
        except BaseException:
            self.close()
            raise
        self._base.ggml_set_output(result)
        self._result = Tensor.from_address(result)
        self._plan = ComputePlan()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._base.ggml_free(self._context)
            self._context = None

    def place(self, compute: Compute) -> None:
        """Places the intermediates and plans the run.

        Raises:
            KernelError: see ``Compute.place``.
        """
        compute.place(self._graph)
        self._plan = compute.plan(self._graph)
        self._values = values_of(self._result)

    def run(self, compute: Compute) -> Float32Array:
        """Runs it; the logits, f32 [n_tokens, rows], a view of the intermediates' buffer.

        Raises:
            KernelError: see ``Compute.run``.
        """
        compute.run(self._graph, self._plan)
        return self._values

    def _build(
        self,
        spec: ModelSpec,
        blocks: Sequence[tuple[Block, Sequence[Piece]]],
        shape: BatchShape,
        settings: GraphSettings,
        addresses: Addresses,
        cache: KvCache,
        resident: Mapping[int, Sequence[int]],
    ) -> int:
        residual: int = self._base.ggml_new_tensor_2d(self._context, TYPE_F32, spec.n_embd, shape.n_tokens)
        Tensor.from_address(residual).data = addresses.residual
        for block, pieces in blocks:
            joint = Joint(self._graph, residual)
            builder = Builder(spec, block.kind, pieces, shape, settings, addresses, self._context, joint)
            result = builder.build()
            for pointer, address in zip(builder.pointers, resident[block.index], strict=True):
                pointer.value = address
            if block.kind is BlockKind.ATTENTION:
                keys, values = cache.addresses(block.layer)
                for pointers, address in ((builder.k_pointers, keys), (builder.v_pointers, values)):
                    for pointer in pointers:
                        pointer.value = address
            if block.kind is BlockKind.HEAD:
                return result
            residual = self._base.ggml_add(self._context, result, residual)
            self._base.ggml_build_forward_expand(self._graph, residual)
        return residual
