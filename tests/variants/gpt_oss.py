"""gpt-oss with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import Made, add_ends, add_experts, add_router, base_entries, normal


def gpt_oss(n_layers: int, n_embd: int, n_experts: int, n_ff: int, expert_kind: str | None = None) -> Made:
    """Of 20B (24 layers) and 120B (36 layers), whose experts are MXFP4."""
    n_heads, n_kv_heads, dim = 8, 2, 64
    made = Made(
        "gpt-oss",
        base_entries(
            n_layers,
            n_embd,
            n_heads,
            n_kv_heads,
            dim,
            n_ff,
            context_length=2048,
            expert_count=n_experts,
            expert_used_count=4,
            expert_feed_forward_length=n_ff,
        ),
    )
    made.entries["attention.sliding_window"] = 32
    made.entries |= {
        "rope.freq_base": 150000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
    }
    add_ends(made, n_embd)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", n_embd)
        for name, n_rows in {"attn_q": n_heads, "attn_k": n_kv_heads, "attn_v": n_kv_heads}.items():
            made.add(at + name, n_rows * dim, n_embd)
            made.add(f"{at}{name}.bias", n_rows * dim)
        made.add_output(at + "attn_output", n_embd, n_heads * dim)
        made.add_output(at + "attn_output.bias", n_embd)
        made.add(at + "attn_sinks", n_heads, draw=normal(1.0))
        made.add(at + "post_attention_norm", n_embd)
        add_router(made, at, n_embd, n_experts)
        made.add(at + "ffn_gate_inp.bias", n_experts)
        add_experts(made, at, n_embd, n_ff, n_experts, kind=expert_kind)
        made.add(at + "ffn_gate_exps.bias", n_experts, n_ff)
        made.add(at + "ffn_up_exps.bias", n_experts, n_ff)
        made.add_output(at + "ffn_down_exps.bias", n_experts, n_embd)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "gpt-oss 20B": lambda: gpt_oss(24, 256, 8, 64),
    "gpt-oss 20B MXFP4": lambda: gpt_oss(24, 256, 8, 64, "MXFP4"),
    "gpt-oss 120B": lambda: gpt_oss(36, 96, 16, 64),
    "gpt-oss 120B MXFP4": lambda: gpt_oss(36, 96, 16, 64, "MXFP4"),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "gpt-oss": lambda: gpt_oss(2, 64, 8, 64),
}
"""With which headers are falsified."""
