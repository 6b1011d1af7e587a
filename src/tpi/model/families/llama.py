"""The ``llama`` architecture: Llama 2 and 3, Mistral, TinyLlama, Yi and others with the same blocks."""

from dataclasses import dataclass

from tpi.errors import UnsupportedModelError
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

NAMES = ("llama",)
_ROPE_FACTORS = "rope_freqs.weight"


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: experts, or a kind of rope scaling that is not computed.
    """
    if meta.integer("expert_count", 0):
        raise UnsupportedModelError(f"{meta.file}: models with experts (MoE) are not supported yet")
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    dim, n_ff, eps = heads.dim, meta.sole("feed_forward_length"), meta.epsilon("attention.layer_norm_rms_epsilon")
    rope = read_rope(meta, dim, dimensions.n_context_train, RopeStyle.NORMAL)
    factors = (tensors.copy("rope_factors", _ROPE_FACTORS, dim // 2),) if _ROPE_FACTORS in tensors else ()
    attention, ffn = Attention(dim, eps, rope, bool(factors)), GatedFfn(eps)
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        q, k, v = heads.qkv(tensors, at, n_embd)
        slots = (
            tensors.copy("attn_norm", at + "attn_norm.weight", n_embd),
            q,
            k,
            *factors,
            v,
            tensors.columns("o", at + "attn_output.weight", (heads.n * dim, n_embd), dim),
        )
        found.append(Block(len(found), "attention", layer, (heads.measure(slots),), slots, attention, heads.state))
        found.append(gated_ffn(len(found), layer, n_embd, n_ff, tensors, ffn))
    found.append(output_head(len(found), dimensions, tensors, Head(eps)))
    return Model(tuple(found))


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with rotary embeddings."""

    head_dim: int
    rms_eps: float
    rope: Rope
    has_factors: bool

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "attn_norm", self.rms_eps)
        factors = "rope_factors" if self.has_factors else None
        q, k = g.matmul("q", x), g.matmul("k", x)
        q, k = g.rope(q, self.rope, self.head_dim, factors), g.rope(k, self.rope, self.head_dim, factors)
        return g.matmul("o", g.rows(g.attention(q, k, g.matmul("v", x), inverse_root(self.head_dim))))
