"""The ``exaone4`` architecture: EXAONE 4. The stream is not normed before attention and FFN, but what they give is
before it is added. In the 32B model three layers of four see a window, and the others' heads are not turned."""

from dataclasses import replace

from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, PostNorm, after_sum, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import factors_slots, inputs_with_factors, read_near, read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("exaone4",)

_LAYERS_OF_32B = 64
_PATTERN, _WINDOW = 4, 4096
"""Of so many layers the last one sees everything; how much the others see, if the file does not say."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Of every layer attention, what follows it, FFN, and what follows that; then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, norm, found = read_heads(meta, dimensions), dimensions.n_embd, read_norm(meta), list[Block]()
    n_ff, has_windows = meta.sole("feed_forward_length"), dimensions.n_layers == _LAYERS_OF_32B
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    windows, factors = (0,) * dimensions.n_layers, factors_slots(tensors, rope)
    if has_windows:
        windows = meta.windows(dimensions.n_layers, _PATTERN, _WINDOW)
        rope = read_near(meta, rope)
    attention, ffn, post_norm = Attention(heads.dim, norm, rope, inverse_root(heads.dim)), Ffn(norm), PostNorm(norm)
    for layer, window in enumerate(windows):
        is_turned = window > 0 or not has_windows
        found.append(
            attention_block(
                len(found), layer, heads, n_embd, tensors, attention if is_turned else replace(attention, rope=None),
                window=window, head_norms=HeadNorms.ALIKE, factors=factors if is_turned else (), norm=None,
                is_kept=True,
            )
        )  # fmt: skip
        found.append(after_sum(len(found), "attention", layer, n_embd, tensors, post_norm))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn, norm=None, is_kept=True))
        found.append(after_sum(len(found), "ffw", layer, n_embd, tensors, post_norm))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found), inputs_with_factors(factors, rope))
