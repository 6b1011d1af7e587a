"""The ``qwen3`` architecture: dense Qwen 3. Heads of queries and keys are normed before they are turned."""

from dataclasses import dataclass

from tpi.model.blocks import Block
from tpi.model.common import GatedFfn, Head, gated_ffn, output_head
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import Rope, RopeStyle, Steps, V
from tpi.model.tensors import Tensors

NAMES = ("qwen3",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    dim, n_ff, eps = heads.dim, meta.sole("feed_forward_length"), meta.epsilon("attention.layer_norm_rms_epsilon")
    rope = read_rope(meta, dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention, ffn = Attention(dim, eps, rope), GatedFfn(eps)
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        q, k, v = heads.qkv(tensors, at, n_embd)
        slots = (
            tensors.copy("attn_norm", at + "attn_norm.weight", n_embd),
            q,
            tensors.copy("q_norm", at + "attn_q_norm.weight", dim),
            k,
            tensors.copy("k_norm", at + "attn_k_norm.weight", dim),
            v,
            tensors.columns("o", at + "attn_output.weight", (heads.n * dim, n_embd), dim),
        )
        found.append(Block(len(found), "attention", layer, (heads.measure(slots),), slots, attention, heads.state))
        found.append(gated_ffn(len(found), layer, n_embd, n_ff, tensors, ffn))
    found.append(output_head(len(found), dimensions, tensors, Head(eps)))
    return Model(tuple(found))


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with normed heads."""

    head_dim: int
    rms_eps: float
    rope: Rope

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "attn_norm", self.rms_eps)
        q = g.rms_norm(g.heads(g.matmul("q", x), self.head_dim), "q_norm", self.rms_eps)
        k = g.rms_norm(g.heads(g.matmul("k", x), self.head_dim), "k_norm", self.rms_eps)
        q, k = g.rope(q, self.rope, self.head_dim, None), g.rope(k, self.rope, self.head_dim, None)
        return g.matmul("o", g.rows(g.attention(q, k, g.matmul("v", x), inverse_root(self.head_dim))))
