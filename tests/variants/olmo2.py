"""olmo2 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import Made, add_ends, add_ffn, base_entries, fuse_qkv

_HEAD = 32


def olmo2(n_layers: int, n_heads: int, n_kv_heads: int, *, window: int = 0) -> Made:
    """Of OLMo 2 (1B: 16 layers, 7B: 32, 13B: 40, 32B: 64, whose query heads share KV heads) and, with a window, OLMo 3
    (the same numbers of layers, positions stretched where there is no window)."""
    n_embd, n_ff = n_heads * _HEAD, 512
    made = Made("olmo2", base_entries(n_layers, n_embd, n_heads, n_kv_heads, _HEAD, n_ff))
    if window:
        made.entries |= {
            "attention.sliding_window": window,
            "attention.sliding_window_pattern": [layer % 4 != 3 for layer in range(n_layers)],
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.2079441541679836,
        }
    add_ends(made, n_embd)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_q", n_embd, n_embd)
        made.add(at + "attn_k", n_kv_heads * _HEAD, n_embd)
        made.add(at + "attn_v", n_kv_heads * _HEAD, n_embd)
        made.add(at + "attn_output", n_embd, n_embd)
        made.add(at + "attn_q_norm", n_embd)
        made.add(at + "attn_k_norm", n_kv_heads * _HEAD)
        made.add_output(at + "post_attention_norm", n_embd)
        add_ffn(made, at, n_embd, n_ff)
        made.add_output(at + "post_ffw_norm", n_embd)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "olmo2 1B": lambda: olmo2(16, 8, 8),
    "olmo2 7B": lambda: olmo2(32, 8, 8),
    "olmo2 13B": lambda: olmo2(40, 6, 6),
    "olmo2 32B": lambda: olmo2(64, 8, 2),
    "olmo2 3 7B": lambda: olmo2(32, 8, 8, window=32),
    "olmo2 3 32B": lambda: olmo2(64, 8, 2, window=32),
    "olmo2 32B fused": lambda: fuse_qkv(VARIANTS["olmo2 32B"]()),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "olmo2": lambda: olmo2(2, 4, 2, window=8),
}
"""With which headers are falsified."""
