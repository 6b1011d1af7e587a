"""Rotary embeddings as the metadata of most architectures describe them."""

from math import inf, log

from tpi.errors import UnsupportedModelError
from tpi.model.metadata import Metadata
from tpi.model.steps import Rope, RopeStyle


def read_rope(meta: Metadata, head_dim: int, n_context_train: int, style: RopeStyle) -> Rope:
    """Rope scaling as llama.cpp derives it from the same keys (the yarn factor: Peng et al. 2023, section 3.4).

    Raises:
        ModelFileError: an entry has an impossible value.
        UnsupportedModelError: another kind of scaling than linear and yarn.
    """
    n_dims = meta.integer("rope.dimension_count", head_dim)
    meta.require(n_dims == head_dim, "rope.dimension_count", n_dims)
    base = meta.number("rope.freq_base", 10000.0)
    meta.require(base > 0, "rope.freq_base", base)
    scaling = meta.text("rope.scaling.type", "linear")
    factor = meta.number("rope.scaling.factor", 0.0) or meta.number("rope.scale_linear", 0.0) or 1.0
    meta.require(1e-3 < factor < 1e6, "rope.scaling.factor", factor)
    extrapolation, attention_factor = 0.0, meta.number("rope.scaling.attn_factor", 1.0)
    if scaling == "yarn":
        log_mul = meta.number("rope.scaling.yarn_log_multiplier", 0.0)
        meta.require(log_mul >= 0, "rope.scaling.yarn_log_multiplier", log_mul)
        extrapolation = 1.0
        attention_factor *= _yarn_attention(factor, log_mul)
    elif scaling not in ("linear", "none"):
        raise UnsupportedModelError(f"{meta.file}: rope scaling {scaling!r} is not supported; linear and yarn are")
    meta.require(abs(attention_factor) < inf, "rope.scaling.attn_factor", attention_factor)
    return Rope(
        style=style,
        n_dims=n_dims,
        base=base,
        frequency_scale=1.0 if scaling == "none" else 1.0 / factor,
        extrapolation=extrapolation,
        attention_factor=attention_factor,
        original_context=meta.integer("rope.scaling.original_context_length", n_context_train),
    )


def _yarn_attention(factor: float, log_mul: float) -> float:
    """ggml multiplies by 1 + 0.1 ln(factor) itself; this is what remains for it to be multiplied with."""
    growth = 0.1 * log(factor) if factor > 1 else 0.0
    own = (1 + growth) / (1 + log_mul * growth) if log_mul else 1 + growth
    return own / (1 + 0.1 * log(factor))
