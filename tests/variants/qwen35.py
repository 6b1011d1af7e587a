"""qwen3next, qwen35 and qwen35moe with random weights. Called by tests only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tests.variants.made import (
    Made,
    add_ends,
    add_experts,
    add_ffn,
    add_router,
    add_scales,
    base_entries,
    fuse_qkv,
    normal,
)

_N_HEADS, _N_KV_HEADS, _HEAD = 4, 2, 64
_ROTATED, _SECTIONS = 16, (3, 3, 2, 0)
_STATE, _KERNEL = 32, 4
_N_FF, _N_DENSE = 32, 256


@dataclass(frozen=True)
class Shape:
    """What differs between the models.

    ``pattern`` is how the file says which layers have attention, every fourth: "interval", "layers", both, or nothing.
    """

    n_layers: int
    n_embd: int
    n_experts: int
    n_key_heads: int
    n_value_heads: int
    pattern: tuple[str, ...] = ()
    is_fused: bool = False
    n_predicting: int = 0
    is_dense: bool = False
    is_paired: bool = False
    """qwen3next: value heads lie with their key head."""
    has_all_in_one: bool = False
    """Its queries, keys, values and gates are one matrix."""

    @property
    def is_recurrent(self) -> list[bool]:
        """Of every layer; predicting blocks have attention."""
        return [layer % 4 != 3 for layer in range(self.n_layers)] + [False] * self.n_predicting


def qwen35moe(shape: Shape) -> Made:
    """Gated delta nets, attention in every fourth layer, and experts with one for all tokens."""
    n_embd = shape.n_embd
    entries = base_entries(len(shape.is_recurrent), n_embd, _N_HEADS, _N_KV_HEADS, _HEAD, 0)
    del entries["feed_forward_length"]
    made = Made("qwen35" if shape.is_dense else "qwen3next" if shape.is_paired else "qwen35moe", entries)
    made.entries |= {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1000.0,
        "rope.dimension_count": _ROTATED,
        "rope.dimension_sections": _SECTIONS,
        "ssm.conv_kernel": _KERNEL,
        "ssm.state_size": _STATE,
        "ssm.group_count": shape.n_key_heads,
        "ssm.time_step_rank": shape.n_value_heads,
        "ssm.inner_size": _STATE * shape.n_value_heads,
        "expert_count": shape.n_experts,
        "expert_used_count": 4,
        "expert_feed_forward_length": _N_FF,
        "expert_shared_feed_forward_length": _N_FF,
    }
    if shape.is_paired:
        del made.entries["rope.dimension_sections"]
    if shape.is_dense:
        for key in [key for key in made.entries if key.startswith("expert_")]:
            del made.entries[key]
        made.entries["feed_forward_length"] = _N_DENSE
    if "interval" in shape.pattern:
        made.entries["full_attention_interval"] = 4
    if "layers" in shape.pattern:
        made.entries["attention.recurrent_layers"] = shape.is_recurrent
    if shape.n_predicting:
        made.entries["nextn_predict_layers"] = shape.n_predicting
    add_ends(made, n_embd)
    for layer, is_recurrent in enumerate(shape.is_recurrent):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", n_embd)
        made.add(at + "post_attention_norm", n_embd)
        if is_recurrent:
            _add_delta_net(made, at, shape)
        else:
            _add_attention(made, at, n_embd)
        if shape.is_dense:
            add_ffn(made, at, n_embd, _N_DENSE)
        else:
            add_router(made, at, n_embd, shape.n_experts)
            add_experts(made, at, n_embd, _N_FF, shape.n_experts, is_fused=shape.is_fused)
            made.add(at + "ffn_gate_inp_shexp", n_embd, draw=normal(n_embd**-0.5))
            add_ffn(made, at, n_embd, _N_FF, "_shexp")
        if layer >= shape.n_layers:
            made.add(at + "nextn.eh_proj", n_embd, 2 * n_embd)
            made.add(at + "nextn.enorm", n_embd)
            made.add(at + "nextn.hnorm", n_embd)
            made.add(at + "nextn.shared_head_norm", n_embd)
    return made


def _add_attention(made: Made, at: str, n_embd: int) -> None:
    """Every head's query rows are followed by those of its gate."""
    made.add(at + "attn_q", _N_HEADS * 2 * _HEAD, n_embd)
    made.add(at + "attn_k", _N_KV_HEADS * _HEAD, n_embd)
    made.add(at + "attn_v", _N_KV_HEADS * _HEAD, n_embd)
    made.add(at + "attn_q_norm", _HEAD)
    made.add(at + "attn_k_norm", _HEAD)
    made.add_output(at + "attn_output", n_embd, _N_HEADS * _HEAD)


def _add_delta_net(made: Made, at: str, shape: Shape) -> None:
    """Some heads forget slowly, so that what they keep from hundreds of tokens counts."""
    n_embd, n_values = shape.n_embd, shape.n_value_heads
    n_channels = _STATE * (2 * shape.n_key_heads + n_values)
    if shape.has_all_in_one:
        made.add(at + "ssm_in", n_channels + _STATE * n_values, n_embd)
    else:
        made.add(at + "attn_qkv", n_channels, n_embd)
        made.add(at + "attn_gate", _STATE * n_values, n_embd)
    made.add(at + "ssm_conv1d", n_channels, _KERNEL)
    made.add(at + "ssm_dt.bias", n_values, draw=normal(0.5))
    made.add(at + "ssm_a", n_values, draw=lambda random, size: -np.exp(random.uniform(-5.0, 0.5, size)))
    if shape.is_paired:
        made.add(at + "ssm_ba", 2 * n_values, n_embd)
    else:
        made.add(at + "ssm_beta", n_values, n_embd)
        made.add(at + "ssm_alpha", n_values, n_embd)
    made.add(at + "ssm_norm", _STATE)
    made.add_output(at + "ssm_out", n_embd, _STATE * n_values)


_SMALL = Shape(40, 256, 10, 2, 4, ("interval",))
_MIDDLE = Shape(48, 96, 16, 4, 16, ("interval", "layers"))
_NEXT = Shape(48, 96, 16, 4, 8, ("interval",), is_paired=True)
_LARGE = Shape(60, 96, 16, 2, 8)

VARIANTS: Mapping[str, Callable[[], Made]] = {
    "qwen3next 80B-A3B all in one": lambda: qwen35moe(replace(_NEXT, n_layers=8, has_all_in_one=True)),
    "qwen3next 80B-A3B": lambda: qwen35moe(_NEXT),
    "qwen35 0.8B": lambda: qwen35moe(Shape(8, 256, 0, 4, 4, ("interval",), is_dense=True)),
    "qwen35 9B": lambda: qwen35moe(Shape(32, 96, 0, 2, 4, n_predicting=1, is_dense=True)),
    "qwen35 27B": lambda: qwen35moe(Shape(64, 96, 0, 2, 6, ("layers",), is_dense=True)),
    "qwen35moe 35B-A3B": lambda: qwen35moe(_SMALL),
    "qwen35moe 35B-A3B fused": lambda: qwen35moe(replace(_SMALL, is_fused=True)),
    "qwen35moe 35B-A3B predicting": lambda: qwen35moe(replace(_SMALL, n_predicting=1)),
    "qwen35moe 122B-A10B": lambda: qwen35moe(_MIDDLE),
    "qwen35moe 122B-A10B predicting": lambda: qwen35moe(replace(_MIDDLE, is_fused=True, n_predicting=1)),
    "qwen35moe 397B-A17B": lambda: qwen35moe(_LARGE),
    "qwen35moe 35B-A3B scaled": lambda: add_scales(VARIANTS["qwen35moe 35B-A3B"]()),
    "qwen35moe 35B-A3B fused qkv": lambda: fuse_qkv(VARIANTS["qwen35moe 35B-A3B"]()),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "qwen35": lambda: qwen35moe(Shape(4, 64, 0, 2, 4, is_dense=True)),
    "qwen3next": lambda: qwen35moe(Shape(4, 64, 10, 2, 4, is_paired=True)),
    "qwen35moe": lambda: qwen35moe(Shape(2, 64, 10, 2, 4, ("interval", "layers"))),
}
"""With which headers are falsified."""
