"""qwen3moe with random weights. Called by tests only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tests.variants.made import Made, add_ends, add_experts, add_router, base_entries

_N_KV_HEADS = 2


@dataclass(frozen=True)
class Shape:
    """What differs between the models. ``is_stretched``: positions are, by yarn, as in files for 128K tokens."""

    n_layers: int
    n_embd: int
    n_experts: int
    n_heads: int
    n_head: int = 32
    n_ff: int = 64
    is_tied: bool = False
    is_stretched: bool = False


def qwen3moe(shape: Shape) -> Made:
    """Normed heads, together wider than the residual stream, and experts in every layer."""
    n_embd, n_heads, n_head = shape.n_embd, shape.n_heads, shape.n_head
    entries = base_entries(shape.n_layers, n_embd, n_heads, _N_KV_HEADS, n_head, 4 * shape.n_ff)
    made = Made("qwen3moe", entries)
    made.entries |= {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1000000.0,
        "expert_count": shape.n_experts,
        "expert_used_count": 4,
        "expert_feed_forward_length": shape.n_ff,
    }
    if shape.is_stretched:
        made.entries |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        }
    add_ends(made, n_embd)
    if shape.is_tied:
        del made.tensors["output.weight"]
    for layer in range(shape.n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", n_embd)
        made.add(at + "attn_q", n_heads * n_head, n_embd)
        made.add(at + "attn_q_norm", n_head)
        made.add(at + "attn_k", _N_KV_HEADS * n_head, n_embd)
        made.add(at + "attn_k_norm", n_head)
        made.add(at + "attn_v", _N_KV_HEADS * n_head, n_embd)
        made.add_output(at + "attn_output", n_embd, n_heads * n_head)
        made.add(at + "ffn_norm", n_embd)
        add_router(made, at, n_embd, shape.n_experts)
        add_experts(made, at, n_embd, shape.n_ff, shape.n_experts)
    return made


_SMALL = Shape(48, 128, 8, 8)
_LARGE = Shape(94, 96, 16, 16)

VARIANTS: Mapping[str, Callable[[], Made]] = {
    "qwen3moe 30B-A3B": lambda: qwen3moe(_SMALL),
    "qwen3moe 30B-A3B tied": lambda: qwen3moe(replace(_SMALL, is_tied=True)),
    "qwen3moe 30B-A3B stretched": lambda: qwen3moe(replace(_SMALL, is_stretched=True)),
    "qwen3moe 235B-A22B": lambda: qwen3moe(_LARGE),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "qwen3moe": lambda: qwen3moe(Shape(2, 64, 8, 8)),
}
"""With which headers are falsified."""
