"""Phi 3, 3.5 and 4. Queries, keys and values are in one matrix, gate and up in another, as the architecture wants."""

from math import log, sqrt

import numpy as np

from tpi.errors import UnsupportedModelError
from tpi.hub.description import Description
from tpi.hub.families.common import base_entries, begin, layers_of, rope_of
from tpi.hub.folder import HubFolder
from tpi.hub.values import Given

CLASSES = ("Phi3ForCausalLM",)
_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.qkv_proj.weight": "attn_qkv.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def describe(folder: HubFolder) -> Description:
    """Raises:
    ModelFileError, UnsupportedModelError: an entry or a tensor is missing or impossible.
    """
    config, rope = folder.config, rope_of(folder.config)
    n_heads, n_embd = config.integer("num_attention_heads"), config.integer("hidden_size")
    if not 0 < n_heads <= n_embd:
        raise config.impossible("num_attention_heads")
    held = rope if "original_max_position_embeddings" in rope else config
    n_original, n_context = held.integer("original_max_position_embeddings"), config.integer("max_position_embeddings")
    part = rope if "partial_rotary_factor" in rope else config
    entries = base_entries(config) | {
        "rope.scaling.original_context_length": n_original,
        "rope.dimension_count": int(part.number("partial_rotary_factor", 1.0) * n_embd) // n_heads,
        "attention.sliding_window": config.integer("sliding_window", 0),
    }
    factors = {name: rope.numbers(f"{name}_factor") for name in ("long", "short")}
    if factors["long"]:
        kind = rope.text("rope_type") or rope.text("type")
        if kind not in ("longrope", "su") or not n_original > 1:
            raise UnsupportedModelError(f"{config.file}: rope scaling {kind!r:.40} is not supported")
        scale = n_context / n_original
        entries["rope.scaling.attn_factor"] = float(
            np.float32(sqrt(1 + log(scale) / log(n_original)) if scale > 1 else 1.0)
        )
    to = begin(folder, "phi3", entries)
    for name, values in factors.items():
        if values:
            to.put(f"rope_factors_{name}.weight", Given(values))
    for layer in range(layers_of(to)):
        to.rename(_NAMES, f"{to.prefix}layers.{layer}.", f"blk.{layer}.")
    return to
