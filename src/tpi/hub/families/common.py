"""What most families have in common: entries from the config, names of tensors."""

from math import pi

import numpy as np

from tpi.errors import UnsupportedModelError
from tpi.gguf.reader import MetadataValue
from tpi.hub.config import Config
from tpi.hub.description import Description
from tpi.hub.folder import HubFolder
from tpi.hub.values import Given

Entries = dict[str, MetadataValue]

ENDS = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
HEAD = {"lm_head.weight": "output.weight"}
ATTENTION = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
}
QK_NORMS = {"self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight"}
QKV_BIASES = {f"self_attn.{role}_proj.bias": f"attn_{role}.bias" for role in "qkv"}
GATED_FFN = {
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}

_INTEGERS = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "block_count": ("num_hidden_layers",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok", "top_k_experts"),
}


def base_entries(config: Config) -> Entries:
    """What nearly all architectures read.

    Raises:
        ModelFileError: an entry is impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    entries: Entries = {}
    for name, keys in _INTEGERS.items():
        if (key := config.first(*keys)) is not None:
            entries[name] = config.integer(key)
    if "rms_norm_eps" in config:
        entries["attention.layer_norm_rms_epsilon"] = config.number("rms_norm_eps")
    return entries | rope_entries(config)


def rope_of(config: Config) -> Config:
    """The rope's own entries: of layers without a window, where these have others."""
    found = config.part("rope_parameters", "rope_scaling")
    return found.part("full_attention") if "full_attention" in found else found


def rope_entries(config: Config) -> Entries:
    """Base and scaling.

    Raises:
        ModelFileError: an entry is impossible.
        UnsupportedModelError: a kind of scaling that is not computed.
    """
    rope, entries = rope_of(config), Entries()
    kind = rope.text("rope_type") or rope.text("type") or "default"
    base = rope if "rope_theta" in rope else config
    if "rope_theta" in base:
        entries["rope.freq_base"] = base.number("rope_theta")
    if kind in ("linear", "yarn"):
        entries["rope.scaling.type"] = kind
        entries["rope.scaling.factor"] = rope.number("factor")
    if kind == "yarn":
        entries["rope.scaling.original_context_length"] = rope.integer("original_max_position_embeddings")
        for name in ("attention_factor", "attn_factor"):
            if name in rope:
                entries["rope.scaling.yarn_attn_factor"] = rope.number(name)
                break
        for theirs, ours in (
            ("extrapolation_factor", "yarn_ext_factor"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ):
            if theirs in rope:
                entries[f"rope.scaling.{ours}"] = rope.number(theirs)
    if kind not in ("default", "none", "linear", "yarn", "llama3", "longrope", "su", "proportional"):
        raise UnsupportedModelError(f"{config.file}: rope scaling {kind!r:.40} is not supported")
    return entries


def head_dim(config: Config) -> int:
    """Values of a head.

    Raises:
        ModelFileError: impossible.
    """
    n_heads = config.integer("num_attention_heads")
    dim = config.integer("head_dim", config.integer("hidden_size") // max(1, n_heads))
    if not 0 < dim < 1 << 16 or not 0 < n_heads < 1 << 16:
        raise config.impossible("num_attention_heads")
    return dim


def llama3_factors(config: Config, dim: int) -> Given | None:
    """By what each frequency of a head is divided where rope is scaled as in Llama 3.1: long waves by ``factor``, short
    ones not, a ramp between.

    Raises:
        ModelFileError: an entry is missing or impossible.
    """
    rope = rope_of(config)
    if (rope.text("rope_type") or rope.text("type")) != "llama3":
        return None
    base = (rope if "rope_theta" in rope else config).number("rope_theta", 10000.0)
    factor, context = rope.number("factor", 8.0), rope.integer("original_max_position_embeddings", 8192)
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    if not (base > 0 and factor > 0 and context > 0 and 0 < low < high):
        raise rope.impossible("low_freq_factor")
    powers = np.power(np.float32(base), np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    waves = np.float32(2 * pi) / (np.float32(1) / powers)
    smooth = (np.float32(context) / waves - np.float32(low)) / np.float32(high - low)
    ramp = np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
    long, short = waves > context / low, waves < context / high
    return Given(tuple(map(float, np.where(short, 1, np.where(long, factor, ramp)))))


def begin(folder: HubFolder, architecture: str, entries: Entries) -> Description:
    """A description with what stands at both ends of a model: embeddings, last norm, and a head of its own, if there is
    one.

    Raises:
        ModelFileError, UnsupportedModelError: a tensor is missing, or of a type that cannot be used.
    """
    to = Description(folder, architecture, entries)
    to.rename(ENDS, to.prefix, "")
    if not folder.config.flag("tie_word_embeddings", False):
        to.rename(HEAD, "", "")
    folder.skip("lm_head.")
    return to


def layers_of(to: Description) -> int:
    """How many layers there are to be described.

    Raises:
        ModelFileError: more than there are tensors, or none.
    """
    n_layers = to.folder.config.integer("num_hidden_layers")
    if not 0 < n_layers <= len(to.folder.tensors):
        raise to.folder.config.impossible("num_hidden_layers")
    return n_layers
