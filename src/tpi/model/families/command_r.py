"""The ``command-r`` architecture: Command R and R+. Attention and FFN of a layer look at the same normed stream, and
are summed as one block."""

from tpi.model.attention import Attention, HeadNorms, SideBySide, side_by_side
from tpi.model.blocks import Block
from tpi.model.common import Head, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("command-r",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """One block for every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    n_ff, norm = meta.sole("feed_forward_length"), read_norm(meta, is_centred=True)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NORMAL)
    head_norms = HeadNorms.APART if "blk.0.attn_q_norm.weight" in tensors else HeadNorms.NONE
    graph = SideBySide(Attention(heads.dim, norm, rope, inverse_root(heads.dim)))
    for layer in range(dimensions.n_layers):
        found.append(side_by_side(len(found), layer, heads, n_embd, n_ff, tensors, graph, head_norms=head_norms))
    found.append(output_head(len(found), dimensions, tensors, Head(norm, meta.number("logit_scale", 1.0))))
    return Model(tuple(found))
