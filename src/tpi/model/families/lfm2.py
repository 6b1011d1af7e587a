"""The ``lfm2`` and ``lfm2moe`` architectures: LFM 2. Most layers are short convolutions between two gates, the others
attend, with normed heads; behind the first layers FFNs may be experts."""

from dataclasses import dataclass

from tpi.errors import UnsupportedModelError
from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block, measure_of
from tpi.model.common import FFN_UNIT_COLUMNS, Ffn, Head, Norm, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_groups, read_sizes
from tpi.model.spans import Span
from tpi.model.spec import Dimensions
from tpi.model.states import RecurrentState
from tpi.model.steps import RopeStyle, Steps, V
from tpi.model.tensors import Tensors

NAMES = ("lfm2", "lfm2moe")


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Convolution or attention, and FFN, of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling, or of choosing experts, that is not computed.
    """
    n_embd, n_layers, norm, found = dimensions.n_embd, dimensions.n_layers, read_norm(meta), list[Block]()
    n_dense = meta.integer("leading_dense_block_count", 0) if meta.architecture == "lfm2moe" else n_layers
    n_kernel, window = meta.positive("shortconv.l_cache"), meta.integer("attention.sliding_window", 0)
    meta.require(2 <= n_kernel <= 64, "shortconv.l_cache", n_kernel)
    for layer, n_kv in enumerate(meta.each("attention.head_count_kv", n_layers)):
        if n_kv:
            heads = read_heads(meta, dimensions, n_kv)
            rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
            attention = Attention(heads.dim, norm, rope, inverse_root(heads.dim))
            found.append(
                attention_block(
                    len(found), layer, heads, n_embd, tensors, attention, window=window, head_norms=HeadNorms.ALIKE
                )
            )
        else:
            found.append(_convolution(len(found), layer, n_embd, n_kernel, tensors, norm))
        if layer < n_dense:
            n_ff = meta.sole("feed_forward_length")
            found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, Ffn(norm)))
        else:
            ffn = ExpertFfn(norm, _read_routing(meta))
            found.append(expert_block(len(found), layer, n_embd, read_sizes(meta), tensors, ffn, has_choice_bias=True))
    found.append(output_head(len(found), dimensions, tensors, Head(norm), norm="token_embd_norm"))
    return Model(tuple(found))


def _read_routing(meta: Metadata) -> Routing:
    gating = meta.positive("expert_gating_func")
    if gating not in (1, 2):
        raise UnsupportedModelError(f"{meta.file}: experts are chosen in a way (number {gating}) that is not supported")
    return Routing(Gating(gating), True, 1.0, *read_groups(meta))


def _convolution(index: int, layer: int, n_embd: int, n_kernel: int, tensors: Tensors, norm: Norm) -> Block:
    """Cut by its channels."""
    at, shape = f"blk.{layer}.shortconv.", (n_embd, 3 * n_embd)
    gates = tuple(
        tensors.rows(role, at + "in_proj.weight", shape, rows=Span(number * n_embd, (number + 1) * n_embd))
        for number, role in enumerate(("before", "after", "values"))
    )
    slots = (
        tensors.copy("norm", f"blk.{layer}.attn_norm.weight", n_embd),
        *gates,
        tensors.vectors("kernels", at + "conv.weight", (n_kernel, n_embd)),
        tensors.columns("out", at + "out_proj.weight", (n_embd, n_embd)),
    )
    measure = measure_of("channels", n_embd, FFN_UNIT_COLUMNS, slots)
    state = RecurrentState((n_kernel - 1,), (0,), 1)
    return Block(index, "convolution", layer, (measure,), slots, Convolution(norm), state)


@dataclass(frozen=True)
class Convolution:
    """A gate before a short convolution, and one behind it."""

    norm: Norm

    def build(self, g: Steps[V]) -> V:
        x = self.norm.build(g, g.residual(), "norm")
        before, after, values = g.matmul("before", x), g.matmul("after", x), g.matmul("values", x)
        made = g.causal_conv(g.multiply(before, values), "kernels")
        return g.matmul("out", g.multiply(after, made))
