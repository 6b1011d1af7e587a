"""The ``phimoe`` architecture: Phi 3.5 with experts. Attention as in ``phi3``; norms, the output of attention and the
head have biases; all FFNs are experts, weighted by the softmax of all scores, normalised among the chosen ones."""

from tpi.model.attention import Attention, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Head, Norm, output_head
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import factors_slots, inputs_with_factors, read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_groups, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("phimoe",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and experts of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    norm = Norm(meta.epsilon("attention.layer_norm_rms_epsilon"), may_have_bias=True)
    sizes = read_sizes(meta, width="feed_forward_length")
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    factors = factors_slots(tensors, rope)
    attention = Attention(heads.dim, norm, rope, inverse_root(heads.dim), is_query_scaled=True)
    ffn = ExpertFfn(norm, Routing(Gating.SOFTMAX, True, 1.0, *read_groups(meta)))
    for layer in range(dimensions.n_layers):
        bias = f"blk.{layer}.attn_output.bias"
        meta.require_tensor(bias in tensors, bias)
        found.append(
            attention_block(
                len(found), layer, heads, n_embd, tensors, attention, factors=factors, may_have_out_bias=True
            )
        )  # fmt: skip
        found.append(expert_block(len(found), layer, n_embd, sizes, tensors, ffn))
    found.append(output_head(len(found), dimensions, tensors, Head(norm), has_bias=True))
    return Model(tuple(found), inputs_with_factors(factors, rope))
