"""lfm2 and lfm2moe with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import N_VOCAB, Entries, Made, add_experts, add_ffn, add_router, base_entries, normal, uniform
from tests.variants.topics import topical

_EMBD, _HEADS, _HEAD, _KERNEL, _FF = 256, 8, 32, 3, 128


def lfm2(
    n_layers: int, n_dense: int | None = None, entries: Entries | None = None, *, n_kernel: int = _KERNEL, **more: bool
) -> Made:
    """Every third layer attends; behind ``n_dense`` layers FFNs are experts."""
    attends = [layer % 3 == 2 for layer in range(n_layers)]
    made = Made(
        "lfm2" if n_dense is None else "lfm2moe",
        base_entries(n_layers, _EMBD, _HEADS, 2, _HEAD, _FF, **(entries or {})),
    )
    made.entries |= {
        "attention.head_count_kv": [2 if attend else 0 for attend in attends],
        "shortconv.l_cache": n_kernel,
        "vocab_size": N_VOCAB,
    }
    made.add("token_embd", N_VOCAB, _EMBD, draw=topical(1.0))
    made.add("token_embd_norm", _EMBD)
    if not more.get("is_tied"):
        made.add("output", N_VOCAB, _EMBD)
    if n_dense is not None:
        made.entries |= {
            "expert_count": 8,
            "expert_used_count": 4,
            "expert_feed_forward_length": 64,
            "expert_gating_func": 2,
            "leading_dense_block_count": n_dense,
        }
    for layer, attend in enumerate(attends):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", _EMBD)
        if attend:
            for name, n in (("q", _HEADS), ("k", 2), ("v", 2)):
                made.add(f"{at}attn_{name}", n * _HEAD, _EMBD)
            made.add(at + "attn_q_norm", _HEAD)
            made.add(at + "attn_k_norm", _HEAD)
            made.add_output(at + "attn_output", _EMBD, _EMBD)
        else:
            made.add(at + "shortconv.in_proj", 3 * _EMBD, _EMBD)
            made.add(at + "shortconv.conv", _EMBD, n_kernel, draw=normal(n_kernel**-0.5))
            made.add_output(at + "shortconv.out_proj", _EMBD, _EMBD)
        made.add(at + "ffn_norm", _EMBD)
        if n_dense is None or layer < n_dense:
            add_ffn(made, at, _EMBD, _FF)
        else:
            add_router(made, at, _EMBD, 8)
            add_experts(made, at, _EMBD, 64, 8)
            made.add(at + "exp_probs_b.bias", 8, draw=uniform(0.0, 1e-4))
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "lfm2 1.2B": lambda: lfm2(6, is_tied=True),
    "lfm2 window": lambda: lfm2(6, None, {"attention.sliding_window": 48}, n_kernel=5),
    "lfm2moe 8B-A1B": lambda: lfm2(6, 2),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "lfm2": lambda: lfm2(3, is_tied=True),
    "lfm2moe": lambda: lfm2(3, 1),
}
"""With which headers are falsified."""
