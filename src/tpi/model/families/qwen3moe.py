"""The ``qwen3moe`` architecture: Qwen 3 with experts. Attention as in ``qwen3``; all FFNs are experts, whose weights
are the softmax of all scores, normalised among the chosen ones."""

from dataclasses import dataclass

from tpi.model.blocks import Block, Slot
from tpi.model.common import Head, output_head
from tpi.model.heads import Heads, read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.routing import GatedExpert, Gating, Routing, gated_experts, read_groups, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, Rope, RopeStyle, Steps, V
from tpi.model.tensors import Tensors

NAMES = ("qwen3moe",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and experts of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    eps, sizes = meta.epsilon("attention.layer_norm_rms_epsilon"), read_sizes(meta, may_be_silent=True)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention, ffn = (
        Attention(heads.dim, eps, rope),
        ExpertFfn(eps, Routing(Gating.SOFTMAX, True, 1.0, *read_groups(meta))),
    )
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        slots = _attention_slots(at, heads, n_embd, tensors)
        found.append(Block(len(found), "attention", layer, (heads.measure(slots),), slots, attention, heads.state))
        experts = gated_experts(at, n_embd, sizes, tensors, GatedExpert(Activation.SWIGLU))
        ffn_slots = (
            tensors.copy("norm", at + "ffn_norm.weight", n_embd),
            tensors.matrix("router", at + "ffn_gate_inp.weight", (n_embd, sizes.n)),
        )
        found.append(Block(len(found), "ffn", layer, (experts.whole(),), ffn_slots, ffn, experts=experts))
    found.append(output_head(len(found), dimensions, tensors, Head(eps)))
    return Model(tuple(found))


def _attention_slots(at: str, heads: Heads, n_embd: int, tensors: Tensors) -> tuple[Slot, ...]:
    dim, n = heads.dim, heads.n
    q, k, v = heads.qkv(tensors, at, n_embd)
    return (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        q,
        tensors.copy("q_norm", at + "attn_q_norm.weight", dim),
        k,
        tensors.copy("k_norm", at + "attn_k_norm.weight", dim),
        v,
        tensors.columns("o", at + "attn_output.weight", (n * dim, n_embd), dim),
    )


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with normed heads."""

    head_dim: int
    rms_eps: float
    rope: Rope

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        q = g.rms_norm(g.heads(g.matmul("q", x), self.head_dim), "q_norm", self.rms_eps)
        k = g.rms_norm(g.heads(g.matmul("k", x), self.head_dim), "k_norm", self.rms_eps)
        q, k = g.rope(q, self.rope, self.head_dim), g.rope(k, self.rope, self.head_dim)
        return g.matmul("o", g.rows(g.attention(q, k, g.matmul("v", x), inverse_root(self.head_dim))))


@dataclass(frozen=True)
class ExpertFfn:
    """Experts alone."""

    rms_eps: float
    routing: Routing

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        return self.routing.build(g, g.matmul("router", x), x)
