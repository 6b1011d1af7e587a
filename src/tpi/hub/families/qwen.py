"""Qwen 2, 2.5 and 3, dense and, of Qwen 3, with experts. Tensors are what the architectures want, but for experts."""

from tpi.hub.description import Description
from tpi.hub.families.common import ATTENTION, GATED_FFN, QK_NORMS, QKV_BIASES, base_entries, begin, layers_of
from tpi.hub.families.experts import put_experts
from tpi.hub.folder import HubFolder

_ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3moe"}
CLASSES = tuple(_ARCHITECTURES)
_ROUTER = {"mlp.gate.weight": "ffn_gate_inp.weight"}


def describe(folder: HubFolder) -> Description:
    """Raises:
    ModelFileError, UnsupportedModelError: an entry or a tensor is missing or impossible.
    """
    config, entries = folder.config, base_entries(folder.config)
    if "moe_intermediate_size" in config:
        entries["expert_feed_forward_length"] = config.integer("moe_intermediate_size")
    to = begin(folder, _ARCHITECTURES[folder.found_class(CLASSES)], entries)
    names = ATTENTION | QK_NORMS | QKV_BIASES | GATED_FFN | _ROUTER
    for layer in range(layers_of(to)):
        source, target = f"{to.prefix}layers.{layer}.", f"blk.{layer}."
        to.rename(names, source, target)
        if f"{source}mlp.gate.weight" in folder:
            put_experts(
                to,
                f"{source}mlp.experts.",
                target,
                config.integer(config.first("num_local_experts", "num_experts") or "num_experts"),
            )
    return to
