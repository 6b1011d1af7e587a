"""The ``llama`` architecture: Llama 2 and 3, Mistral, TinyLlama, Yi and others with the same blocks."""

from dataclasses import dataclass
from math import sqrt

from tpi.errors import UnsupportedModelError
from tpi.model.blocks import Block, KvState, measure_of
from tpi.model.metadata import Metadata
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import Rope, Steps, V
from tpi.model.tensors import FFN_UNIT_COLUMNS, Tensors, head_of

NAME = "llama"
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Hyper:
    """What the metadata say beside the dimensions that all models have."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    rms_eps: float
    rope: Rope


def read_hyper(meta: Metadata, dimensions: Dimensions) -> Hyper:
    """Raises:
    ModelFileError: a required entry is missing or has an impossible value.
    UnsupportedModelError: experts, long-rope or another feature that is not computed.
    """
    if meta.integer("expert_count", 0):
        raise UnsupportedModelError(f"{meta.file}: models with experts (MoE) are not supported yet")
    n_heads = meta.uniform("attention.head_count")
    meta.require(n_heads > 0, "attention.head_count", n_heads)
    n_kv_heads = meta.uniform("attention.head_count_kv", n_heads)
    meta.require(n_kv_heads > 0 and n_heads % n_kv_heads == 0, "attention.head_count_kv", n_kv_heads)
    head_dim = meta.integer("attention.key_length", dimensions.n_embd // n_heads)
    meta.require(head_dim > 0 and head_dim % 2 == 0, "attention.key_length", head_dim)
    value_dim = meta.integer("attention.value_length", head_dim)
    meta.require(value_dim == head_dim, "attention.value_length", value_dim)
    n_ff = meta.uniform("feed_forward_length")
    meta.require(n_ff > 0, "feed_forward_length", n_ff)
    rms_eps = meta.number("attention.layer_norm_rms_epsilon")
    meta.require(rms_eps > 0, "attention.layer_norm_rms_epsilon", rms_eps)
    rope = read_rope(meta, head_dim, dimensions.n_context_train)
    return Hyper(n_heads, n_kv_heads, head_dim, n_ff, rms_eps, rope)


def blocks(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> list[Block]:
    """Attention and FFN of every layer, then the head; raises as ``read_hyper``, and for tensors that do not fit."""
    hyper, n_embd, found = read_hyper(meta, dimensions), dimensions.n_embd, list[Block]()
    dim, group = hyper.head_dim, hyper.n_heads // hyper.n_kv_heads
    q, kv = hyper.n_heads * dim, hyper.n_kv_heads * dim
    factors = (tensors.copy("rope_factors", _ROPE_FACTORS, dim // 2),) if _ROPE_FACTORS in tensors else ()
    attention, ffn = Attention(dim, hyper.rms_eps, hyper.rope, bool(factors)), Ffn(hyper.rms_eps)
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        slots = (
            tensors.copy("attn_norm", at + "attn_norm.weight", n_embd),
            tensors.rows("q", at + "attn_q.weight", (n_embd, q), dim),
            tensors.rows("k", at + "attn_k.weight", (n_embd, kv), dim, group),
            *factors,
            tensors.rows("v", at + "attn_v.weight", (n_embd, kv), dim, group),
            tensors.columns("o", at + "attn_output.weight", (q, n_embd), dim),
        )
        measure = measure_of("heads", hyper.n_heads, group, slots)
        found.append(Block(len(found), "attention", layer, measure, slots, attention, KvState(dim, group)))
        slots = (
            tensors.copy("ffn_norm", at + "ffn_norm.weight", n_embd),
            tensors.rows("gate", at + "ffn_gate.weight", (n_embd, hyper.n_ff)),
            tensors.rows("up", at + "ffn_up.weight", (n_embd, hyper.n_ff)),
            tensors.columns("down", at + "ffn_down.weight", (hyper.n_ff, n_embd)),
        )
        measure = measure_of("columns", hyper.n_ff, FFN_UNIT_COLUMNS, slots)
        found.append(Block(len(found), "ffn", layer, measure, slots, ffn))
    found.append(head_of(len(found), dimensions, tensors, Head(hyper.rms_eps)))
    return found


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
        return g.matmul("o", g.attention(q, k, g.matmul("v", x), self.head_dim, 1 / sqrt(self.head_dim)))


@dataclass(frozen=True)
class Ffn:
    """A gated feed-forward network."""

    rms_eps: float

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "ffn_norm", self.rms_eps)
        gate = g.matmul("gate", x)
        return g.matmul("down", g.swiglu(gate, g.matmul("up", x)))


@dataclass(frozen=True)
class Head:
    """Logits."""

    rms_eps: float

    def build(self, g: Steps[V]) -> V:
        return g.matmul("head", g.rms_norm(g.residual(), "head_norm", self.rms_eps))
