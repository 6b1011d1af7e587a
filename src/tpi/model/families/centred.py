"""Architectures whose norms subtract the mean, and have biases: StableLM, StarCoder 2, Nemotron. In a layer of StableLM
that has no second norm, attention and FFN look at the same normed stream, and are one block."""

from collections.abc import Mapping
from dataclasses import dataclass

from tpi.model.attention import Attention, HeadNorms, SideBySide, attention_block, side_by_side
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, RopeStyle, Unary
from tpi.model.tensors import Tensors


@dataclass(frozen=True)
class Details:
    """What differs."""

    activation: Activation | Unary
    may_be_part: bool = True
    """The first values of a head alone may be turned."""
    has_biases: bool = False
    """The output of attention and the matrices of the network may have some."""


_DETAILS: Mapping[str, Details] = {
    "nemotron": Details(Unary.SQUARED_RELU, has_biases=True),
    "stablelm": Details(Activation.SWIGLU),
    "starcoder2": Details(Unary.GELU, may_be_part=False, has_biases=True),
}
NAMES = tuple(_DETAILS)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, or one block for both; then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    details, found = _DETAILS[meta.architecture], list[Block]()
    heads, n_embd, norm = read_heads(meta, dimensions), dimensions.n_embd, read_norm(meta, is_centred=True)
    n_ff, n_context = meta.sole("feed_forward_length"), dimensions.n_context_train
    rope = read_rope(meta, heads.dim, n_context, RopeStyle.NEOX, may_be_part=details.may_be_part)
    attention, ffn = Attention(heads.dim, norm, rope, inverse_root(heads.dim)), Ffn(norm, details.activation)
    beside = SideBySide(attention, details.activation)
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        head_norms = HeadNorms.APART if at + "attn_q_norm.weight" in tensors else HeadNorms.NONE
        if at + "ffn_norm.weight" not in tensors:
            found.append(side_by_side(len(found), layer, heads, n_embd, n_ff, tensors, beside, head_norms=head_norms))
            continue
        found.append(
            attention_block(
                len(found), layer, heads, n_embd, tensors, attention,
                head_norms=head_norms, may_have_out_bias=details.has_biases,
            )
        )  # fmt: skip
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn, has_biases=details.has_biases))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
