"""Attention whose queries and keys are normed over all heads at once, which takes a sum over all ranks in its middle:
two blocks, cut alike."""

from dataclasses import dataclass

from tpi.model.blocks import Block, Leavings
from tpi.model.common import Norm, norm_slots
from tpi.model.heads import Heads
from tpi.model.numbers import inverse_root
from tpi.model.states import FULL, KvState
from tpi.model.steps import Rope, Steps, V
from tpi.model.tensors import Tensors


@dataclass(frozen=True)
class AllHeads:
    """Queries, keys and values of the stream, normed if the block has ``attn_norm``; the squares of all queries and of
    all keys are summed."""

    norm: Norm
    state: KvState

    def build(self, g: Steps[V]) -> V:
        x = self.norm.build(g, g.residual(), "attn_norm")
        q, k, v = g.biased("q", x), g.biased("k", x), g.biased("v", x)
        sums = g.join(g.square_sums(q), g.square_sums(k, self.state))
        return g.join(sums, g.join(q, g.join(k, v)))


@dataclass(frozen=True)
class NormedTogether:
    """Grouped-query attention with what ``AllHeads`` has left."""

    heads: Heads
    norm: Norm
    rope: Rope

    def build(self, g: Steps[V]) -> V:
        dim, sums, eps = self.heads.dim, g.left_sums(), self.norm.eps
        q = g.rms_scaled(g.left(0), g.some(sums, 0, 1), self.heads.n * dim, eps, "q_norm")
        k = g.rms_scaled(g.left(1), g.some(sums, 1, 1), self.heads.n_kv * dim, eps, "k_norm")
        q, k = g.rope(q, self.rope, dim), g.rope(k, self.rope, dim)
        return g.matmul("o", g.rows(g.attention(q, k, g.left(2), inverse_root(dim))))


def attention_blocks(
    index: int,
    layer: int,
    n_embd: int,
    tensors: Tensors,
    graph: NormedTogether,
    *,
    window: int = FULL,
    norm: str | None = "attn_norm",
    is_kept: bool = False,
) -> tuple[Block, Block]:
    """Heads, then attention of ``graph``. ``norm``: what the file calls the norm before; ``is_kept``: what attention
    gives is not added to the stream.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    at, heads = f"blk.{layer}.", graph.heads
    dim, state = heads.dim, heads.state_of(window)
    o = (
        tensors.values("q_norm", at + "attn_q_norm.weight", heads.n * dim, dim),
        tensors.values("k_norm", at + "attn_k_norm.weight", heads.n_kv * dim, dim, heads.group),
        tensors.columns("o", at + "attn_output.weight", (heads.n * dim, n_embd), dim),
    )
    measures = (heads.measure(o),)
    before = norm_slots(tensors, "attn_norm", at + norm, n_embd, graph.norm) if norm else ()
    slots = (*before, *heads.products(tensors, at, n_embd))
    leavings = Leavings(2, ((dim, 1), (dim, heads.group), (dim, heads.group)))
    made = AllHeads(graph.norm, state)
    return (
        Block(index, "heads", layer, measures, slots, made, is_kept=True, leaves=leavings),
        Block(index + 1, "attention", layer, measures, o, graph, state, is_kept=is_kept),
    )
