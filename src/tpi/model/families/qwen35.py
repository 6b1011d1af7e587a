"""The ``qwen3next``, ``qwen35`` and ``qwen35moe`` architectures: Qwen 3 Next, 3.5 and 3.6, dense or with experts. Most
layers are recurrent (gated delta nets), every fourth one attends, with a gate for its result; experts stand beside one
that every token uses."""

from dataclasses import dataclass, replace

from tpi.errors import UnsupportedModelError
from tpi.model.blocks import Block, Slot
from tpi.model.common import Ffn, Head, Norm, ffn_block, output_head
from tpi.model.deltanet import delta_net_block, paired_net_block, read_net
from tpi.model.heads import Heads, read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_groups, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import Rope, RopeStyle, Steps, Unary, V
from tpi.model.tensors import Tensors

NAMES = ("qwen35", "qwen35moe", "qwen3next")

_INTERVAL = 4


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Recurrence or attention, and experts, of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    eps, has_experts = meta.epsilon("attention.layer_norm_rms_epsilon"), meta.architecture != "qwen35"
    attention, net = Attention(heads.dim, eps, _read_rope(meta, dimensions, heads)), read_net(meta)
    recurrence = paired_net_block if meta.architecture == "qwen3next" else delta_net_block
    norm = Norm(eps)
    dense, routed = Ffn(norm), ExpertFfn(norm, Routing(Gating.SOFTMAX, True, 1.0, *read_groups(meta)))
    for layer, is_recurrent in enumerate(_read_kinds(meta, dimensions.n_layers)):
        at = f"blk.{layer}."
        if is_recurrent:
            found.append(recurrence(len(found), layer, n_embd, net, tensors, eps))
        else:
            slots = _attention_slots(at, n_embd, heads, tensors)
            found.append(Block(len(found), "attention", layer, (heads.measure(slots),), slots, attention, heads.state))
        if has_experts:
            sizes = read_sizes(meta, may_be_silent=True)
            n_shared = meta.integer("expert_shared_feed_forward_length", 0) or meta.sole("feed_forward_length")
            found.append(
                expert_block(
                    len(found), layer, n_embd, sizes, tensors, routed, norm="post_attention_norm", n_shared=n_shared
                )
            )
        else:
            n_ff = meta.sole("feed_forward_length")
            found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, dense, norm="post_attention_norm"))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))


def _read_kinds(meta: Metadata, n_layers: int) -> tuple[bool, ...]:
    """Whether each layer is recurrent."""
    flags = meta.flags("attention.recurrent_layers", n_layers)
    if flags is not None:
        return flags
    interval = meta.integer("full_attention_interval", _INTERVAL)
    meta.require(interval > 0, "full_attention_interval", interval)
    return tuple((layer + 1) % interval != 0 for layer in range(n_layers))


def _read_rope(meta: Metadata, dimensions: Dimensions, heads: Heads) -> Rope:
    """Of text all sections of a position are equal, so that they turn as one; the last one would be 0."""
    sections = (0,) * 4 if meta.architecture == "qwen3next" else meta.each("rope.dimension_sections", 4)
    if sections[3]:
        raise UnsupportedModelError(f"{meta.file}: rope of {sections[3]} more dimensions is not supported")
    return read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX, may_be_part=True)


def _attention_slots(at: str, n_embd: int, heads: Heads, tensors: Tensors) -> tuple[Slot, ...]:
    dim, n = heads.dim, heads.n
    q, k, v = heads.qkv(tensors, at, n_embd, 2)
    return (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        replace(q, role="q_and_gate"),
        tensors.copy("q_norm", at + "attn_q_norm.weight", dim),
        k,
        tensors.copy("k_norm", at + "attn_k_norm.weight", dim),
        v,
        tensors.columns("o", at + "attn_output.weight", (n * dim, n_embd), dim),
    )


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with normed heads; the query's matrix also makes a gate for every head."""

    head_dim: int
    rms_eps: float
    rope: Rope

    def build(self, g: Steps[V]) -> V:
        dim = self.head_dim
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        both = g.heads(g.matmul("q_and_gate", x), 2 * dim)
        q, gate = g.rms_norm(g.some(both, 0, dim), "q_norm", self.rms_eps), g.some(both, dim, dim)
        k = g.rms_norm(g.heads(g.matmul("k", x), dim), "k_norm", self.rms_eps)
        q, k = g.rope(q, self.rope, dim), g.rope(k, self.rope, dim)
        attended = g.rows(g.attention(q, k, g.matmul("v", x), inverse_root(dim)))
        return g.matmul("o", g.multiply(attended, g.apply(Unary.SIGMOID, g.rows(gate))))
