"""Rotary embeddings as the metadata of most architectures describe them."""

from dataclasses import replace
from math import inf

import numpy as np

from tpi.errors import UnsupportedModelError
from tpi.model.blocks import Slot
from tpi.model.inputs import ModelInputs
from tpi.model.metadata import Metadata
from tpi.model.steps import Rope, RopeStyle, Steps, V
from tpi.model.tensors import Tensors

_FACTORS = {
    "rope_factors": "rope_freqs.weight",
    "long_factors": "rope_factors_long.weight",
    "short_factors": "rope_factors_short.weight",
}
"""By role: for all contexts, and for those that are longer than the original one, or not."""


def read_rope(
    meta: Metadata,
    head_dim: int,
    n_context_train: int,
    style: RopeStyle,
    *,
    may_be_part: bool = False,
    is_log_doubled: bool = False,
    log_unit: float = 1.0,
    suffix: str = "",
) -> Rope:
    """Rope scaling as llama.cpp derives it from the same keys (the yarn factor: Peng et al. 2023, section 3.4).
    ``may_be_part``: the first values of a head alone may be turned. ``is_log_doubled``: yarn's log multiplier grows
    what it is divided by as well; ``log_unit``: by what the file has multiplied it. ``suffix``: of the names of entries
    about layers with a window, whose positions are not stretched.

    Raises:
        ModelFileError: an entry has an impossible value.
        UnsupportedModelError: another kind of scaling than linear, yarn and longrope (which are factors).
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
        log_mul = float(np.float32(log_mul) / np.float32(log_unit))
        attention_factor *= _yarn_attention(factor, log_mul, is_log_doubled)
    elif scaling not in ("linear", "none", "longrope"):
        raise UnsupportedModelError(
            f"{meta.file}: rope scaling {scaling!r} is not supported; linear, yarn and longrope are"
        )
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


def read_near(meta: Metadata, rope: Rope) -> Rope:
    """``rope`` as layers with a window have it, where it differs by its base alone.

    Raises:
        ModelFileError: the base is impossible.
    """
    base = meta.number("rope.freq_base_swa", rope.base)
    meta.require(base > 0, "rope.freq_base_swa", base)
    return replace(rope, base=base)


def factors_slots(tensors: Tensors, rope: Rope) -> tuple[Slot, ...]:
    """What frequencies are divided by, as far as the file has it: one vector for all contexts (Llama 3.1), or one for
    long and one for short ones (longrope: Ding et al. 2024).

    Raises:
        ModelFileError: a shape or type is not the one.
    """
    return tuple(tensors.copy(role, name, rope.n_dims // 2) for role, name in _FACTORS.items() if name in tensors)


def factors_role(g: Steps[V], rope: Rope) -> str | None:
    """Which of a block's factors frequencies are divided by, as llama.cpp chooses: for all positions alike, by how many
    a sequence can have."""
    role = "long_factors" if g.can_exceed(rope.original_context) else "short_factors"
    role = "rope_factors" if g.has("rope_factors") else role
    return role if g.has(role) else None


def inputs_with_factors(factors: tuple[Slot, ...], rope: Rope) -> ModelInputs:
    """Of a model with these."""
    has_choice = any(slot.role != "rope_factors" for slot in factors)
    return ModelInputs(short_context=rope.original_context if has_choice else 0)


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
