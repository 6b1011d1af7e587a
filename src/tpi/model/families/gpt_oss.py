"""The ``gpt-oss`` architecture: gpt-oss 20B and 120B. Every other layer sees a window; attention has sinks; all FFNs
are experts; everything has a bias."""

from dataclasses import dataclass, replace

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

NAMES = ("gpt-oss",)
_PATTERN = 2
"""Of so many layers the last one sees everything."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and experts of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    eps, sizes = meta.epsilon("attention.layer_norm_rms_epsilon"), read_sizes(meta)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    windows = meta.windows(dimensions.n_layers, _PATTERN)
    ffn = ExpertFfn(eps, Routing(Gating.LATER, False, 1.0, *read_groups(meta)))
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        slots = _attention_slots(at, heads, n_embd, tensors)
        attention = Attention(heads.dim, eps, rope)
        state = replace(heads.state_of(windows[layer]), has_sinks=True)
        found.append(Block(len(found), "attention", layer, (heads.measure(slots),), slots, attention, state))
        experts = gated_experts(at, n_embd, sizes, tensors, GatedExpert(Activation.SWIGLU_OAI))
        ffn_slots = (
            tensors.copy("norm", at + "post_attention_norm.weight", n_embd),
            tensors.matrix("router", at + "ffn_gate_inp.weight", (n_embd, sizes.n)),
            tensors.copy("router_bias", at + "ffn_gate_inp.bias", sizes.n),
            tensors.first("down_bias", at + "ffn_down_exps.bias", (n_embd, sizes.n)),
        )
        found.append(Block(len(found), "ffn", layer, (experts.whole(),), ffn_slots, ffn, experts=experts))
    found.append(output_head(len(found), dimensions, tensors, Head(eps)))
    return Model(tuple(found))


def _attention_slots(at: str, heads: Heads, n_embd: int, tensors: Tensors) -> tuple[Slot, ...]:
    dim, n = heads.dim, heads.n
    q, k, v = heads.qkv(tensors, at, n_embd)
    q_bias, k_bias, v_bias = heads.qkv_biases(tensors, at)
    return (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        q,
        q_bias,
        k,
        k_bias,
        v,
        v_bias,
        tensors.values("sinks", at + "attn_sinks.weight", n),
        tensors.columns("o", at + "attn_output.weight", (n * dim, n_embd), dim),
        tensors.first("o_bias", at + "attn_output.bias", (n_embd, 1)),
    )


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with biases, and a sink for every head."""

    head_dim: int
    rms_eps: float
    rope: Rope

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        q, k, v = (g.plus(g.matmul(role, x), f"{role}_bias") for role in ("q", "k", "v"))
        q, k = g.rope(q, self.rope, self.head_dim), g.rope(k, self.rope, self.head_dim)
        attended = g.attention(q, k, v, inverse_root(self.head_dim), "sinks")
        made = g.matmul("o", g.rows(attended))
        return g.plus(made, "o_bias") if g.has("o_bias") else made


@dataclass(frozen=True)
class ExpertFfn:
    """Experts whose weights are the softmax of the chosen ones' scores."""

    rms_eps: float
    routing: Routing

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        return self.routing.build(g, g.plus(g.matmul("router", x), "router_bias"), x)
