"""Rotary embeddings as the metadata of most architectures describe them."""

from math import inf

import numpy as np

from tpi.errors import UnsupportedModelError
from tpi.model.blocks import Slot
from tpi.model.metadata import Metadata
from tpi.model.steps import Rope, RopeStyle
from tpi.model.tensors import Tensors

_FACTORS = "rope_freqs.weight"


def read_rope(
    meta: Metadata,
    head_dim: int,
    n_context_train: int,
    style: RopeStyle,
    *,
    may_be_part: bool = False,
    is_log_doubled: bool = False,
    suffix: str = "",
) -> Rope:
    """Rope scaling as llama.cpp derives it from the same keys (the yarn factor: Peng et al. 2023, section 3.4).
    ``may_be_part``: the first values of a head alone may be turned. ``is_log_doubled``: yarn's log multiplier grows
    what it is divided by as well. ``suffix``: of the names of entries about layers with a window, whose positions are
    not stretched.

    Raises:
        ModelFileError: an entry has an impossible value.
        UnsupportedModelError: another kind of scaling than linear and yarn.
    """
    n_dims = meta.integer(f"rope.dimension_count{suffix}", head_dim)
    fits = 0 < n_dims <= head_dim and n_dims % 2 == 0 if may_be_part else n_dims == head_dim
    meta.require(fits, "rope.dimension_count", n_dims)
    base = meta.number(f"rope.freq_base{suffix}", 10000.0)
    meta.require(base > 0, "rope.freq_base", base)
    scaling = meta.text("rope.scaling.type", "linear")
    factor = scaling_factor(meta)
    extrapolation, attention_factor = 0.0, meta.number("rope.scaling.attn_factor", 1.0)
    if scaling == "yarn":
        log_mul = meta.number("rope.scaling.yarn_log_multiplier", 0.0)
        meta.require(log_mul >= 0, "rope.scaling.yarn_log_multiplier", log_mul)
        extrapolation = 1.0
        attention_factor *= _yarn_attention(factor, log_mul, is_log_doubled)
    elif scaling not in ("linear", "none"):
        raise UnsupportedModelError(f"{meta.file}: rope scaling {scaling!r} is not supported; linear and yarn are")
    meta.require(abs(attention_factor) < inf, "rope.scaling.attn_factor", attention_factor)
    return Rope(
        style=style,
        n_dims=n_dims,
        base=base,
        frequency_scale=1.0 if scaling == "none" or suffix else 1.0 / factor,
        extrapolation=extrapolation,
        attention_factor=attention_factor,
        original_context=meta.integer("rope.scaling.original_context_length", n_context_train),
    )


def factors_slot(tensors: Tensors, rope: Rope) -> Slot | None:
    """What frequencies are divided by, if the file has it (Llama 3.1): the role ``rope_factors``.

    Raises:
        ModelFileError: its shape or type is not the one.
    """
    return tensors.copy("rope_factors", _FACTORS, rope.n_dims // 2) if _FACTORS in tensors else None


def scaling_factor(meta: Metadata) -> float:
    """By how much positions are stretched; 1 if they are not.

    Raises:
        ModelFileError: impossible.
    """
    factor = meta.number("rope.scaling.factor", 0.0) or meta.number("rope.scale_linear", 0.0) or 1.0
    meta.require(1e-3 < factor < 1e6, "rope.scaling.factor", factor)
    return factor


def _yarn_attention(factor: float, log_mul: float, is_log_doubled: bool) -> float:
    """ggml multiplies by 1 + 0.1 ln(factor) itself; this is what remains for it to be multiplied with."""
    one, tenth = np.float32(1), np.float32(0.1)
    stretched = one / (one / np.float32(factor))

    def growth(by: float) -> np.float32:
        return one if stretched <= 1 else np.float32(tenth * np.float32(by) * np.log(stretched) + one)

    own = growth(1.0)
    if log_mul:
        own = growth(log_mul if is_log_doubled else 1.0) / growth(log_mul)
    return float(own * (one / (one + tenth * np.log(stretched))))
