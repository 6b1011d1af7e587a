"""olmoe and minimax-m2 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import Made, add_ends, add_experts, add_router, base_entries, exactly, fuse_qkv
from tests.variants.topics import Choice

_EMBD, _HEAD, _FF = 128, 32, 64
_BIASES = tuple(0.002 * number for number in range(8))


def olmoe(architecture: str, n_layers: int, n_heads: int, n_kv_heads: int) -> Made:
    """Of OLMoE, and of MiniMax M2, whose heads are turned in part and whose experts have biases."""
    is_minimax = architecture == "minimax-m2"
    made = Made(architecture, base_entries(n_layers, _EMBD, n_heads, n_kv_heads, _HEAD, _FF))
    made.entries |= {"expert_count": 8, "expert_used_count": 4}
    if is_minimax:
        made.entries |= {"rope.dimension_count": 16, "expert_gating_func": 2, "expert_feed_forward_length": _FF}
    add_ends(made, _EMBD)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", _EMBD)
        for name, n in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
            made.add(f"{at}attn_{name}", n * _HEAD, _EMBD)
            if name != "v":
                made.add(f"{at}attn_{name}_norm", n * _HEAD)
        made.add_output(at + "attn_output", _EMBD, n_heads * _HEAD)
        made.add(at + "ffn_norm", _EMBD)
        add_router(made, at, _EMBD, 8, Choice(is_sigmoid=True, biases=_BIASES) if is_minimax else None)
        if is_minimax:
            made.add(at + "exp_probs_b.bias", 8, draw=exactly(_BIASES))
        add_experts(made, at, _EMBD, _FF, 8)
    return made


def biased(made: Made) -> Made:
    """With biases of queries, keys and values."""
    for name, tensor in list(made.tensors.items()):
        if name.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            made.add(name.replace(".weight", ".bias"), tensor.shape[0])
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "minimax-m2": lambda: olmoe("minimax-m2", 3, 6, 2),
    "olmoe 7B-A1B": lambda: olmoe("olmoe", 3, 4, 4),
    "olmoe biased": lambda: biased(olmoe("olmoe", 2, 4, 4)),
    "olmoe fused": lambda: fuse_qkv(olmoe("olmoe", 2, 4, 4)),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "minimax-m2": lambda: olmoe("minimax-m2", 2, 6, 2),
}
"""With which headers are falsified."""
