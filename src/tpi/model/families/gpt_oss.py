"""The ``gpt-oss`` architecture: gpt-oss 20B and 120B. Every other layer sees a window; attention has sinks; all FFNs
are experts; everything has a bias."""

from tpi.model.attention import Attention, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Head, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_groups, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, RopeStyle
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
    norm, sizes = read_norm(meta), read_sizes(meta)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention = Attention(heads.dim, norm, rope, inverse_root(heads.dim))
    ffn = ExpertFfn(norm, Routing(Gating.LATER, False, 1.0, *read_groups(meta)))
    for layer, window in enumerate(meta.windows(dimensions.n_layers, _PATTERN)):
        for name in (f"blk.{layer}.attn_q.bias", f"blk.{layer}.attn_output.bias"):
            meta.require_tensor(name in tensors, name)
        found.append(
            attention_block(
                len(found), layer, heads, n_embd, tensors, attention,
                window=window, may_have_out_bias=True, has_sinks=True,
            )
        )  # fmt: skip
        found.append(
            expert_block(
                len(found), layer, n_embd, sizes, tensors, ffn,
                expert=Activation.SWIGLU_OAI, norm="post_attention_norm", has_biases=True,
            )
        )  # fmt: skip
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
