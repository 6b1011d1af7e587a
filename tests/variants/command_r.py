"""command-r with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import Made, dense


def command_r(n_layers: int, has_norms: bool, n_heads: int = 8, n_kv_heads: int = 2) -> Made:
    """Of 35B (40 layers) and R+ (64 layers, whose heads are normed)."""
    n_embd, dim = 256, 32
    made = dense("command-r", n_layers, n_embd, n_heads, n_kv_heads, dim, 512, logit_scale=0.0625)
    made.entries["attention.layer_norm_epsilon"] = made.entries.pop("attention.layer_norm_rms_epsilon")
    for layer in range(n_layers):
        del made.tensors[f"blk.{layer}.ffn_norm.weight"]
        if has_norms:
            made.add(f"blk.{layer}.attn_q_norm", n_heads, dim)
            made.add(f"blk.{layer}.attn_k_norm", n_kv_heads, dim)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "command-r 35B": lambda: command_r(40, has_norms=False),
    "command-r 104B": lambda: command_r(64, has_norms=True),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "command-r": lambda: command_r(2, has_norms=False),
    "command-r, normed": lambda: command_r(2, has_norms=True),
}
"""With which headers are falsified."""
