"""gpt-oss. Rows of gate and up alternate; experts are in 4 bits, two values of a row side by side in a byte, or else
lie transposed."""

from tpi.hub.description import Description
from tpi.hub.families.common import ATTENTION, QKV_BIASES, base_entries, begin, layers_of
from tpi.hub.families.experts import half
from tpi.hub.folder import HubFolder
from tpi.hub.values import Axes, Columns, Stored, Transposed, Values

CLASSES = ("GptOssForCausalLM",)
_NAMES = (
    ATTENTION
    | QKV_BIASES
    | {
        "self_attn.o_proj.bias": "attn_output.bias",
        "self_attn.sinks": "attn_sinks.weight",
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "mlp.router.weight": "ffn_gate_inp.weight",
        "mlp.router.bias": "ffn_gate_inp.bias",
        "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
    }
)
_PARTS = ("gate", "up")
_PACKED = 16
"""Bytes of a block of 32 values."""


def describe(folder: HubFolder) -> Description:
    """Raises:
    ModelFileError, UnsupportedModelError: an entry or a tensor is missing or impossible.
    """
    config, entries = folder.config, base_entries(folder.config)
    entries["attention.sliding_window"] = config.integer("sliding_window")
    entries["expert_feed_forward_length"] = config.integer("intermediate_size")
    n_experts = config.integer("num_local_experts")
    to = begin(folder, "gpt-oss", entries)
    for layer in range(layers_of(to)):
        source, target = f"{to.prefix}layers.{layer}.", f"blk.{layer}."
        to.rename(_NAMES, source, target)
        _put_experts(to, f"{source}mlp.experts.", target, n_experts)
    return to


def _put_experts(to: Description, source: str, target: str, n_experts: int) -> None:
    fused, down = f"{source}gate_up_proj", f"{source}down_proj"
    biases = to.folder.values(f"{fused}_bias")
    for number, part in enumerate(_PARTS):
        axes = Axes(((biases.n_columns // 2, 2),), number)
        to.put(f"{target}ffn_{part}_exps.bias", Columns(biases, axes))
    if f"{fused}_blocks" in to.folder:
        blocks, scales = _packed(to, fused)
        for number, part in enumerate(_PARTS):
            halves = (half(to, values, n_experts, number, is_interleaved=True) for values in (blocks, scales))
            to.put_mxfp4(f"{target}ffn_{part}_exps.weight", *halves)
        to.put_mxfp4(f"{target}ffn_down_exps.weight", *_packed(to, down))
        return
    whole = _transposed(to, fused)
    for number, part in enumerate(_PARTS):
        to.put(f"{target}ffn_{part}_exps.weight", half(to, whole, n_experts, number, is_interleaved=True))
    to.put(f"{target}ffn_down_exps.weight", _transposed(to, down))


def _packed(to: Description, name: str) -> tuple[Values, Values]:
    """Blocks and scales, a row of each for a row of the matrix."""
    blocks, scales = to.folder.find(f"{name}_blocks"), Stored.of(to.folder.find(f"{name}_scales"))
    return Stored.of(blocks, scales.n_columns * _PACKED), scales


def _transposed(to: Description, name: str) -> Transposed:
    tensor = to.folder.find(name)
    return Transposed(Stored.of(tensor), tensor.shape[-2] if len(tensor.shape) > 1 else 1)
