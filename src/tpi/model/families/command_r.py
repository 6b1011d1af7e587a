"""The ``command-r`` architecture: Command R and R+. Attention and FFN of a layer look at the same normed stream, and
are summed as one block."""

from dataclasses import dataclass

from tpi.model.blocks import Block, measure_of
from tpi.model.common import FFN_UNIT_COLUMNS, output_head
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, Rope, RopeStyle, Steps, V
from tpi.model.tensors import Tensors

NAMES = ("command-r",)

_COLUMNS = 1
"""Number of a layer's second measure; heads are the first."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """One block for every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    dim, n_ff, eps = heads.dim, meta.sole("feed_forward_length"), meta.epsilon("attention.layer_norm_epsilon")
    rope = read_rope(meta, dim, dimensions.n_context_train, RopeStyle.NORMAL)
    has_norms = "blk.0.attn_q_norm.weight" in tensors
    graph = Layer(dim, eps, rope, has_norms)
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        q_norm = (tensors.vectors("q_norm", at + "attn_q_norm.weight", (dim, heads.n)),) if has_norms else ()
        k_shape, k_name = (dim, heads.n_kv), at + "attn_k_norm.weight"
        k_norm = (tensors.vectors("k_norm", k_name, k_shape, group=heads.group),) if has_norms else ()
        q, k, v = heads.qkv(tensors, at, n_embd)
        slots = (
            tensors.copy("norm", at + "attn_norm.weight", n_embd),
            q,
            *q_norm,
            k,
            *k_norm,
            v,
            tensors.columns("o", at + "attn_output.weight", (heads.n * dim, n_embd), dim),
            tensors.rows("gate", at + "ffn_gate.weight", (n_embd, n_ff), measure=_COLUMNS),
            tensors.rows("up", at + "ffn_up.weight", (n_embd, n_ff), measure=_COLUMNS),
            tensors.columns("down", at + "ffn_down.weight", (n_ff, n_embd), measure=_COLUMNS),
        )
        measures = (
            heads.measure(slots),
            measure_of("columns", n_ff, FFN_UNIT_COLUMNS, slots, number=_COLUMNS),
        )
        found.append(Block(len(found), "layer", layer, measures, slots, graph, heads.state))
    found.append(output_head(len(found), dimensions, tensors, Head(eps, meta.number("logit_scale", 1.0))))
    return Model(tuple(found))


@dataclass(frozen=True)
class Layer:
    """Grouped-query attention and a gated feed-forward network, side by side. A rank may have a part of one alone."""

    head_dim: int
    norm_eps: float
    rope: Rope
    has_norms: bool

    def build(self, g: Steps[V]) -> V:
        x = g.layer_norm(g.residual(), "norm", self.norm_eps)
        attended = self._attend(g, x) if g.has("q") else None
        if not g.has("gate"):
            assert attended is not None, "a rank that holds nothing of a block does not build it"
            return attended
        gate = g.matmul("gate", x)
        made = g.matmul("down", g.gated(Activation.SWIGLU, gate, g.matmul("up", x)))
        return made if attended is None else g.add(made, attended)

    def _attend(self, g: Steps[V], x: V) -> V:
        q = self._heads(g, g.matmul("q", x), "q_norm")
        k = self._heads(g, g.matmul("k", x), "k_norm")
        return g.matmul("o", g.rows(g.attention(q, k, g.matmul("v", x), inverse_root(self.head_dim))))

    def _heads(self, g: Steps[V], x: V, norm: str) -> V:
        x = g.heads(x, self.head_dim)
        if self.has_norms:
            x = g.layer_norm(x, norm, self.norm_eps)
        return g.rope(x, self.rope, self.head_dim, None)


@dataclass(frozen=True)
class Head:
    """Scaled logits of the normed stream."""

    norm_eps: float
    logit_scale: float

    def build(self, g: Steps[V]) -> V:
        logits = g.matmul("head", g.layer_norm(g.residual(), "head_norm", self.norm_eps))
        return logits if self.logit_scale == 1.0 else g.scale(logits, self.logit_scale)
