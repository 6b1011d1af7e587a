"""phimoe with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import CONTEXT, N_VOCAB, Made, add_ends, add_experts, add_router, base_entries, fuse_qkv
from tests.variants.phi3 import add_factors

_HEAD = 32


def phimoe(n_layers: int, n_embd: int, n_experts: int, n_short: int) -> Made:
    """Of Phi 3.5 MoE, with other factors beyond ``n_short`` tokens."""
    n_heads, n_kv_heads, n_ff = n_embd // _HEAD, 2, 96
    entries = base_entries(n_layers, n_embd, n_heads, n_kv_heads, _HEAD, n_ff)
    made = Made("phimoe", {**entries, "expert_count": n_experts, "expert_used_count": 4})
    add_ends(made, n_embd)
    made.add("output_norm.bias", n_embd)
    made.add("output.bias", N_VOCAB)
    add_factors(made, _HEAD, n_short)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", n_embd)
        made.add(at + "attn_norm.bias", n_embd)
        for name, n_rows in {"attn_q": n_heads, "attn_k": n_kv_heads, "attn_v": n_kv_heads}.items():
            made.add(at + name, n_rows * _HEAD, n_embd)
            made.add(f"{at}{name}.bias", n_rows * _HEAD)
        made.add_output(at + "attn_output", n_embd, n_heads * _HEAD)
        made.add_output(at + "attn_output.bias", n_embd)
        made.add(at + "ffn_norm", n_embd)
        made.add(at + "ffn_norm.bias", n_embd)
        add_router(made, at, n_embd, n_experts)
        add_experts(made, at, n_embd, n_ff, n_experts)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "phimoe 3.5": lambda: phimoe(4, 128, 8, 64),
    "phimoe 3.5 fused": lambda: fuse_qkv(phimoe(4, 128, 8, CONTEXT)),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "phimoe": lambda: phimoe(2, 64, 8, 8),
}
"""With which headers are falsified."""
