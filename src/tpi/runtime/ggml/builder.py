"""Makes the ggml nodes of one block from the steps of its architecture, and says which of them need which piece, and
where the graph is interrupted. Allocates nothing. One thread."""

from tpi.model.states import RecurrentState
from tpi.runtime.ggml.attentionsteps import AttentionSteps
from tpi.runtime.ggml.binding import ggml
from tpi.runtime.ggml.expertsteps import ExpertSteps
from tpi.runtime.ggml.held import GraphSettings, Held
from tpi.runtime.ggml.inputs import BatchShape, Inputs
from tpi.runtime.ggml.nodes import Place
from tpi.runtime.ggml.recurrentsteps import RecurrentSteps

_OTHER_NODES = 96
"""More than any block has beside what each part of a weight adds: a product, and a place after the ones before it,"""
_NODES_PER_PART = 4
_NODES_PER_RUN = 40
"""each sequence with a recurrent state,"""
_NODES_PER_CHOICE = 3
"""each expert that a token chooses,"""
_NODES_PER_HEAD_RUN = 8
"""each run of heads that share KV heads alike, and, in every group of sequences that look at their own cells, again;"""
_NODES_PER_GROUP = 10
"""beside what else such a group adds."""


def max_nodes(held: Held, shape: BatchShape) -> int:
    """No graph of the block has more."""
    n_parts = sum(len(piece.parts) for piece in held.pieces)
    n_chosen = held.experts.n_used if held.experts is not None else 0
    n_nodes = _OTHER_NODES + _NODES_PER_PART * n_parts + _NODES_PER_CHOICE * n_chosen
    n_nodes += _NODES_PER_RUN * len(shape.runs) if held.is_recurrent else 0
    n_nodes += _NODES_PER_GROUP * shape.n_groups if held.window is not None else 0
    return n_nodes + _NODES_PER_HEAD_RUN * held.n_head_runs * (1 + shape.n_groups)


def tensor_bytes(held: Held, shape: BatchShape) -> int:
    """Room for all tensors of a block: nodes, the views between them, and weights."""
    n_parts = sum(len(piece.parts) for piece in held.pieces)
    return int(ggml().base.ggml_tensor_overhead()) * (2 * max_nodes(held, shape) + n_parts)


def graph_bytes(n_nodes: int) -> int:
    """Room for a graph."""
    return int(ggml().base.ggml_graph_overhead_custom(n_nodes, False))


class Builder(AttentionSteps, RecurrentSteps, ExpertSteps):
    """Satisfies ``model.steps.Steps``."""

    def __init__(
        self,
        held: Held,
        shape: BatchShape,
        settings: GraphSettings,
        context: int,
        graph: int,
        inputs: Inputs,
    ) -> None:
        super().__init__(held, shape, settings, context, graph, inputs)
        self.keys_pointers, self.values_pointers = [], []
        self.entering, self.leaving = [], []
        if isinstance(held.state, RecurrentState):
            self.entering = [[[] for _ in held.state.parts] for _ in shape.runs]
            self.leaving = [[[] for _ in held.state.parts] for _ in shape.runs]
        self._residual = self._summed = self._left = 0

    def build(self, residual: int, summed: int, left: int) -> int:
        """All nodes of the block, from the tensors of the residual stream, of the sum before and of what was left with
        it (0: none); returns its result."""
        self._residual, self._summed, self._left = residual, summed, left
        result = self._append(self._held.graph.build(self))
        self._enter(len(self._parts) - 1)
        return result

    @property
    def state_places(self) -> list[list[Place]]:
        """Where the addresses of the block's state are written: of keys and values; or, for every run, of what is read
        and then of what is written."""
        if not self._held.has_state:
            return []
        if not self._held.is_recurrent:
            return [self.keys_pointers, self.values_pointers]
        return [places for parts in zip(self.entering, self.leaving, strict=True) for run in parts for places in run]

    def residual(self) -> int:
        return self._residual

    def summed(self, number: int = 0) -> int:
        width = self._inputs.n_embd
        return self.some(self._summed, number * width, width)

    def left(self, number: int) -> int:
        return self.some(self._left, sum(self._held.left[:number]), self._held.left[number])

    def left_sums(self) -> int:
        return self._summed

    def embeddings(self) -> int:
        return self._inputs.embeddings

    def looked_up(self, first: int, width: int) -> int:
        return self.some(self._inputs.looked_up, first, width)
