"""The ``glm4`` architecture: GLM 4, dense. Heads are turned in part; gate and up are one tensor; what attention and FFN
give is normed before it is added."""

from tpi.model.attention import Attention, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, PostNorm, after_sum, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("glm4",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Of every layer attention, what follows it, FFN, and what follows that; then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    n_ff, norm = meta.sole("feed_forward_length"), read_norm(meta)
    # Positions of images have several numbers; those of a text are all the same.
    style = RopeStyle.NEOX if meta.has_any("rope.dimension_sections") else RopeStyle.NORMAL
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, style, may_be_part=True)
    attention, ffn, post_norm = Attention(heads.dim, norm, rope, inverse_root(heads.dim)), Ffn(norm), PostNorm(norm)
    for layer in range(dimensions.n_layers):
        found.append(attention_block(len(found), layer, heads, n_embd, tensors, attention, is_kept=True))
        found.append(after_sum(len(found), "attention", layer, n_embd, tensors, post_norm))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn, is_kept=True))
        found.append(after_sum(len(found), "ffw", layer, n_embd, tensors, post_norm))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
