"""The ``command-r`` and ``cohere2`` architectures: Command R and R+, R7B and A. Attention and FFN of a layer look at
the same normed stream, and are summed as one block. In ``cohere2`` three layers of four see a window, and the others'
heads are not turned."""

from dataclasses import replace

from tpi.model.attention import Attention, HeadNorms, SideBySide, side_by_side
from tpi.model.blocks import Block
from tpi.model.common import Head, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.states import FULL
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("command-r", "cohere2")
_PATTERN = 4
"""Of so many layers the last one sees everything."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """One block for every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    n_ff, norm = meta.sole("feed_forward_length"), read_norm(meta, is_centred=True)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NORMAL)
    has_windows = meta.architecture == "cohere2"
    windows = meta.windows(dimensions.n_layers, _PATTERN) if has_windows else (FULL,) * dimensions.n_layers
    head_norms = HeadNorms.APART if "blk.0.attn_q_norm.weight" in tensors and not has_windows else HeadNorms.NONE
    attention = Attention(heads.dim, norm, rope, inverse_root(heads.dim))
    for layer, window in enumerate(windows):
        is_turned = window != FULL or not has_windows
        graph = SideBySide(attention if is_turned else replace(attention, rope=None))
        found.append(
            side_by_side(
                len(found), layer, heads, n_embd, n_ff, tensors, graph, window=window, head_norms=head_norms
            )
        )  # fmt: skip
    head = Head(norm, meta.number("logit_scale", None if has_windows else 1.0) or 1.0)
    found.append(output_head(len(found), dimensions, tensors, head, is_tied=has_windows))
    return Model(tuple(found))
