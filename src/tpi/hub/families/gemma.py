"""Gemma 3 and 4, what they have for text. Gemma 3 stores norms without the 1 that is added to them."""

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.hub.config import Config
from tpi.hub.description import Description
from tpi.hub.families.common import ATTENTION, QK_NORMS, Entries, base_entries, begin, layers_of, rope_of
from tpi.hub.folder import HubFolder
from tpi.hub.values import Changed, Given

_THIRD = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
_FOURTH = ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration")
CLASSES = _THIRD + _FOURTH
_OTHER_PARTS = ("vision_tower.", "audio_tower.", "multi_modal_projector.", "embed_vision.", "embed_audio.")
_NAMES = (
    ATTENTION
    | QK_NORMS
    | {f"mlp.{role}_proj.weight": f"ffn_{role}.weight" for role in ("gate", "up", "down")}
    | {
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "pre_feedforward_layernorm.weight": "ffn_norm.weight",
        "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    }
)
_FOURTH_NAMES = _NAMES | {
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}
_FOURTH_ENDS = {
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}
_LAYERS_OF_27B = 62
"""The one model whose queries are scaled otherwise, as the architecture knows."""
_NOT_TURNED = 1e30
"""What frequencies are divided by that are not to turn anything."""


def describe(folder: HubFolder) -> Description:
    """Raises:
    ModelFileError, UnsupportedModelError: an entry or a tensor is missing or impossible.
    """
    folder.skip(*_OTHER_PARTS)
    return _third(folder) if folder.found_class(CLASSES) in _THIRD else _fourth(folder)


def _third(folder: HubFolder) -> Description:
    config = folder.config
    usual: Entries = {
        "context_length": 131072,
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-6),
        "attention.key_length": 256,
        "attention.value_length": 256,
        "rope.freq_base": 1_000_000.0,
    }
    scalar, dim = config.integer("query_pre_attn_scalar", 256), config.integer("head_dim", 256)
    if scalar != dim and config.integer("num_hidden_layers") != _LAYERS_OF_27B:
        raise UnsupportedModelError(f"{config.file}: query_pre_attn_scalar = {scalar} is not supported; {dim} is")
    to = begin(folder, "gemma3", usual | base_entries(config) | _window_entries(config))
    to.put("output_norm.weight", Changed(folder.values(f"{to.prefix}norm.weight"), "plus 1"))
    for layer in range(layers_of(to)):
        for theirs, ours in _NAMES.items():
            if (source := f"{to.prefix}layers.{layer}.{theirs}") in folder:
                values = folder.values(source)
                is_norm = theirs.endswith("norm.weight")
                to.put(f"blk.{layer}.{ours}", Changed(values, "plus 1") if is_norm else values)
    return to


def _window_entries(config: Config) -> Entries:
    """The window, the rope of layers that have one, and the cap of logits."""
    entries, rope = Entries(), config.part("rope_parameters", "rope_scaling").part("sliding_attention")
    if "sliding_window" in config:
        entries["attention.sliding_window"] = config.integer("sliding_window")
    if "rope_theta" in rope or "rope_local_base_freq" in config:
        local = rope.number("rope_theta") if "rope_theta" in rope else config.number("rope_local_base_freq")
        entries["rope.freq_base_swa"] = local
    if "final_logit_softcapping" in config:
        entries["final_logit_softcapping"] = config.number("final_logit_softcapping")
    return entries


def _fourth(folder: HubFolder) -> Description:
    config, kinds = folder.config, folder.config.list("layer_types")
    has_window = tuple(kind == "sliding_attention" for kind in kinds)
    dim, n_kv = (
        _of_full_layers(config, has_window, "head_dim", "global_head_dim"),
        config.integer("num_key_value_heads"),
    )
    n_kv_full = _of_full_layers(config, has_window, "num_key_value_heads", "num_global_key_value_heads")
    own_dim, n_layers = config.integer("head_dim"), len(kinds)
    n_shared = config.integer("num_kv_shared_layers", 0)
    entries = base_entries(config) | _window_entries(config)
    entries |= {
        "final_logit_softcapping": config.number("final_logit_softcapping", 0.0),
        "attention.sliding_window_pattern": has_window,
        "attention.shared_kv_layers": n_shared,
        "embedding_length_per_layer_input": config.integer("hidden_size_per_layer_input", 0),
        "attention.key_length": dim or own_dim,
        "attention.value_length": dim or own_dim,
        "attention.key_length_swa": own_dim,
        "attention.value_length_swa": own_dim,
        "rope.dimension_count": dim or own_dim,
        "rope.dimension_count_swa": own_dim,
    }
    if n_kv_full is not None:
        entries["attention.head_count_kv"] = tuple(n_kv if window else n_kv_full for window in has_window)
    if config.flag("use_double_wide_mlp", False):
        n_ff = config.integer("intermediate_size")
        entries["feed_forward_length"] = tuple(
            n_ff if layer < n_layers - n_shared else 2 * n_ff for layer in range(n_layers)
        )
    for theirs in ("expert_intermediate_size", "moe_intermediate_size"):
        if theirs in config:
            entries["expert_feed_forward_length"] = config.integer(theirs)
            break
    to = begin(folder, "gemma4", entries)
    to.rename(_FOURTH_ENDS, to.prefix, "")
    to.put("rope_freqs.weight", _frequencies(config, dim or own_dim))
    for layer in range(layers_of(to)):
        to.rename(_FOURTH_NAMES, f"{to.prefix}layers.{layer}.", f"blk.{layer}.")
    return to


def _of_full_layers(config: Config, has_window: tuple[bool, ...], name: str, older: str) -> int | None:
    """An entry of layers without a window, where they have another than the others."""
    if older in config:
        return config.integer(older)
    layers = config.part("per_layer_config")
    for layer in layers.keys():  # noqa: SIM118 - it is no mapping
        is_full = layer.isdecimal() and int(layer) < len(has_window) and not has_window[int(layer)]
        if is_full and name in layers.part(layer):
            return layers.part(layer).integer(name)
    return None


def _frequencies(config: Config, dim: int) -> Given:
    """Of layers without a window only the first part of a head's frequencies turns anything.

    Raises:
        ModelFileError: the part is impossible.
    """
    part = rope_of(config).number("partial_rotary_factor", 1.0)
    if not 0 <= part <= 1 or not 0 < dim < 1 << 16:
        raise ModelFileError(f"{config.file}: partial_rotary_factor = {part} cannot be; fetch the file again")
    n_turned = int(dim * part / 2)
    return Given((1.0,) * n_turned + (_NOT_TURNED,) * (dim // 2 - n_turned))
