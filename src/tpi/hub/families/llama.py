"""Llama 2 and 3, and Mistral. Rows of queries and keys are put in pairs, as the architecture's rope turns them."""

from tpi.errors import ModelFileError
from tpi.hub.description import Description
from tpi.hub.families.common import (
    ATTENTION,
    GATED_FFN,
    base_entries,
    begin,
    head_dim,
    layers_of,
    llama3_factors,
)
from tpi.hub.folder import HubFolder
from tpi.hub.values import Axes, Rows, Values

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM")


def describe(folder: HubFolder) -> Description:
    """Raises:
    ModelFileError, UnsupportedModelError: an entry or a tensor is missing or impossible.
    """
    config = folder.config
    dim, n_heads = head_dim(config), config.integer("num_attention_heads")
    n_kv_heads = config.integer("num_key_value_heads", n_heads)
    entries = base_entries(config) | {"rope.dimension_count": dim}
    to = begin(folder, "llama", entries)
    if (factors := llama3_factors(config, dim)) is not None:
        to.put("rope_freqs.weight", factors)
    for layer in range(layers_of(to)):
        source, target = f"{to.prefix}layers.{layer}.", f"blk.{layer}."
        to.rename(ATTENTION | GATED_FFN, source, target)
        for role, n in (("q", n_heads), ("k", n_kv_heads)):
            values = folder.values(f"{source}self_attn.{role}_proj.weight")
            to.put(f"{target}attn_{role}.weight", in_pairs(folder, values, n, dim))
    return to


def in_pairs(folder: HubFolder, values: Values, n_heads: int, dim: int) -> Rows:
    """Of each head the first value of the first half, the first of the second half, the second of the first, and so on.

    Raises:
        ModelFileError: there are not so many rows.
    """
    if values.n_rows != n_heads * dim or dim % 2:
        raise ModelFileError(f"{folder.path}: {n_heads} heads of {dim} values do not fit a matrix of {values.n_rows}")
    return Rows(values, Axes(((n_heads, dim), (dim // 2, 1), (2, dim // 2))))
