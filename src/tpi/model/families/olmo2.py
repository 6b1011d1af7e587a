"""The ``olmo2`` architecture: OLMo 2 and 3. Queries and keys are normed over all heads at once, which takes a sum over
all ranks before attention; sums are normed before they are added. OLMo 3 sees a window in three layers of four."""

from dataclasses import replace

from tpi.model.allheads import NormedTogether, attention_blocks
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, PostNorm, after_sum, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("olmo2",)
_PATTERN = 4
"""Of so many layers the last one sees everything."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Of every layer heads, attention, what follows it, FFN, and what follows that; then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    n_ff, norm = meta.sole("feed_forward_length"), read_norm(meta)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    near = replace(rope, frequency_scale=1.0, extrapolation=0.0, attention_factor=1.0)
    windows = (0,) * dimensions.n_layers
    if meta.integer("attention.sliding_window", 0):
        windows = meta.windows(dimensions.n_layers, _PATTERN)
    ffn, post_norm = Ffn(norm), PostNorm(norm)
    for layer, window in enumerate(windows):
        graph = NormedTogether(heads, norm, near if window else rope)
        found += attention_blocks(len(found), layer, n_embd, tensors, graph, window=window, norm=None, is_kept=True)
        found.append(after_sum(len(found), "attention", layer, n_embd, tensors, post_norm))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn, norm=None, is_kept=True))
        found.append(after_sum(len(found), "ffw", layer, n_embd, tensors, post_norm))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
