"""The ``gemma2`` and ``gemma3`` architectures. What attention and FFN give is normed before it is added. Some layers
see a window: every other one of Gemma 2, whose scores are bounded; five of six of Gemma 3, whose heads are normed."""

from dataclasses import replace

from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, PostNorm, after_sum, ffn_block, output_head, read_norm
from tpi.model.heads import Heads, read_heads
from tpi.model.inputs import Model, ModelInputs
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root, root
from tpi.model.rope import read_near, read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, Rope, RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("gemma2", "gemma3")

_PATTERNS = {"gemma2": 2, "gemma3": 6}
"""Of so many layers the last one sees everything."""
_WINDOW = 4096
"""Of Gemma 2, if the file does not say."""
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Its scores are scaled by another number than the others'."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Of every layer attention, what follows it, FFN, and what follows that; then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, norm, found = read_heads(meta, dimensions), dimensions.n_embd, read_norm(meta), list[Block]()
    is_old, n_ff = meta.architecture == "gemma2", meta.sole("feed_forward_length")
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention = Attention(
        heads.dim,
        norm,
        rope,
        _read_scale(meta, dimensions, heads),
        softcap=_read_cap(meta, "attn_logit_softcapping", 50.0) if is_old else 0.0,
        is_query_scaled=True,
    )
    near = replace(attention, rope=_read_near(meta, dimensions, heads, rope))
    head_norms = HeadNorms.NONE if is_old else HeadNorms.ALIKE
    ffn, post_norm = Ffn(norm, Activation.GEGLU), PostNorm(norm)
    for layer, window in enumerate(_read_windows(meta, dimensions.n_layers)):
        found.append(
            attention_block(
                len(found), layer, heads, n_embd, tensors, near if window else attention,
                window=window, head_norms=head_norms, is_kept=True,
            )
        )  # fmt: skip
        found.append(after_sum(len(found), "attention", layer, n_embd, tensors, post_norm))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn, is_kept=True))
        found.append(after_sum(len(found), "ffw", layer, n_embd, tensors, post_norm))
    cap = _read_cap(meta, "final_logit_softcapping", 30.0 if is_old else 0.0)
    found.append(output_head(len(found), dimensions, tensors, Head(norm, cap=cap), is_tied=is_old))
    return Model(tuple(found), ModelInputs(root(n_embd)))


def _read_scale(meta: Metadata, dimensions: Dimensions, heads: Heads) -> float:
    is_27b = dimensions.n_layers == _LAYERS_OF_27B[meta.architecture]
    return inverse_root(dimensions.n_embd // heads.n if is_27b else heads.dim)


def _read_cap(meta: Metadata, key: str, usual: float) -> float:
    cap = meta.number(key, usual)
    meta.require(cap >= 0, key, cap)
    return cap


def _read_windows(meta: Metadata, n_layers: int) -> tuple[int, ...]:
    pattern = _PATTERNS[meta.architecture]
    if meta.architecture == "gemma2":
        return meta.windows(n_layers, pattern, _WINDOW)
    if not meta.integer("attention.sliding_window", 0):
        return (0,) * n_layers
    return meta.windows(n_layers, pattern)


def _read_near(meta: Metadata, dimensions: Dimensions, heads: Heads, rope: Rope) -> Rope:
    """Of layers with a window: Gemma 3 does not stretch positions there."""
    if meta.architecture == "gemma3":
        return read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX, suffix="_swa")
    return read_near(meta, rope)
