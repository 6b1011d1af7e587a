"""The ``apertus`` architecture: Apertus. Heads are normed before they are turned; the network has no gate, and in every
layer numbers of its own for its activation."""

from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import factors_slots, inputs_with_factors, read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle, Xielu
from tpi.model.tensors import Tensors

NAMES = ("apertus",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    n_ff, norm, n_layers = meta.sole("feed_forward_length"), read_norm(meta), dimensions.n_layers
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention, factors = Attention(heads.dim, norm, rope, inverse_root(heads.dim)), factors_slots(tensors, rope)
    numbers = zip(
        *(meta.numbers(f"xielu.{name}", n_layers) for name in ("alpha_n", "alpha_p", "beta", "eps")), strict=True
    )
    for layer, (alpha_n, alpha_p, beta, eps) in enumerate(numbers):
        found.append(
            attention_block(
                len(found), layer, heads, n_embd, tensors, attention, head_norms=HeadNorms.ALIKE,
                factors=factors, may_have_out_bias=True,
            )
        )  # fmt: skip
        ffn = Ffn(norm, Xielu(alpha_n, alpha_p, beta, eps))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found), inputs_with_factors(factors, rope))
