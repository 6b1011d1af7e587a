"""The ``phi3`` architecture: Phi 3, Phi 3.5 and Phi 4, dense. Heads may be turned in part, and by other factors in long
contexts. Gate and up are one tensor, as queries, keys and values are in most files. Windows that files tell of are not
looked at, as in llama.cpp."""

from tpi.model.attention import Attention, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import factors_slots, inputs_with_factors, read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("phi3",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    n_ff, norm = meta.sole("feed_forward_length"), read_norm(meta)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX, may_be_part=True)
    factors = factors_slots(tensors, rope)
    attention = Attention(heads.dim, norm, rope, inverse_root(heads.dim), is_query_scaled=True)
    ffn = Ffn(norm)
    for layer in range(dimensions.n_layers):
        found.append(attention_block(len(found), layer, heads, n_embd, tensors, attention, factors=factors))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found), inputs_with_factors(factors, rope))
