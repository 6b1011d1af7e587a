"""Blocks that several architectures have in common."""

from dataclasses import dataclass

from tpi.model.blocks import OWN, Block, Graph, measure_of
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, Steps, V
from tpi.model.tensors import EMBEDDING, Tensors

FFN_UNIT_COLUMNS = 32
"""FFN columns are never cut finer than this, so that unquantised slices keep rows of whole cache lines."""
_HEAD_UNIT_ROWS = 32


@dataclass(frozen=True)
class GatedFfn:
    """``down(silu(gate(x)) * up(x))`` of the normed stream; ``rms_eps`` None: of the stream as it is."""

    rms_eps: float | None

    def build(self, g: Steps[V]) -> V:
        x = g.residual()
        if self.rms_eps is not None:
            x = g.rms_norm(x, "ffn_norm", self.rms_eps)
        gate = g.matmul("gate", x)
        return g.matmul("down", g.gated(Activation.SWIGLU, gate, g.matmul("up", x)))


def gated_ffn(index: int, layer: int, n_embd: int, n_ff: int, tensors: Tensors, graph: GatedFfn) -> Block:
    """A gated feed-forward network, cut by its columns."""
    at = f"blk.{layer}."
    norm = () if graph.rms_eps is None else (tensors.copy("ffn_norm", at + "ffn_norm.weight", n_embd),)
    slots = (
        *norm,
        tensors.rows("gate", at + "ffn_gate.weight", (n_embd, n_ff)),
        tensors.rows("up", at + "ffn_up.weight", (n_embd, n_ff)),
        tensors.columns("down", at + "ffn_down.weight", (n_ff, n_embd)),
    )
    measure = measure_of("columns", n_ff, FFN_UNIT_COLUMNS, slots)
    return Block(index, "ffn", layer, (measure,), slots, graph)


@dataclass(frozen=True)
class PostNorm:
    """A sum is normed, then added to the stream."""

    rms_eps: float

    def build(self, g: Steps[V]) -> V:
        return g.add(g.rms_norm(g.summed(), "post_norm", self.rms_eps), g.residual())


def after_sum(index: int, name: str, layer: int, n_embd: int, tensors: Tensors, graph: PostNorm) -> Block:
    """What follows the sum of the block that files call ``name``."""
    slots = (tensors.copy("post_norm", f"blk.{layer}.post_{name}_norm.weight", n_embd),)
    return Block(index, f"after {name}", layer, OWN, slots, graph, is_own=True)


@dataclass(frozen=True)
class Head:
    """Logits of the normed stream."""

    rms_eps: float

    def build(self, g: Steps[V]) -> V:
        return g.matmul("head", g.rms_norm(g.residual(), "head_norm", self.rms_eps))


def output_head(index: int, dimensions: Dimensions, tensors: Tensors, graph: Graph) -> Block:
    """The output head: ``output`` or, where there is none, the embedding table once more."""
    name = "output.weight" if "output.weight" in tensors else EMBEDDING
    slots = (
        tensors.copy("head_norm", "output_norm.weight", dimensions.n_embd),
        tensors.rows("head", name, (dimensions.n_embd, dimensions.n_vocab)),
    )
    measure = measure_of("rows", dimensions.n_vocab, _HEAD_UNIT_ROWS, slots)
    return Block(index, "head", dimensions.n_layers, (measure,), slots, graph, is_head=True)
