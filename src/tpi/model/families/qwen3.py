"""The ``qwen3`` architecture: dense Qwen 3. Heads of queries and keys are normed before they are turned."""

from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("qwen3",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    n_ff, norm = meta.sole("feed_forward_length"), read_norm(meta)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention, ffn = Attention(heads.dim, norm, rope, inverse_root(heads.dim)), Ffn(norm)
    for layer in range(dimensions.n_layers):
        found.append(attention_block(len(found), layer, heads, n_embd, tensors, attention, head_norms=HeadNorms.ALIKE))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
