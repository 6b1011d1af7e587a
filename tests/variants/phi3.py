"""phi3 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import CONTEXT, N_VOCAB, Made, dense, fuse_qkv, uniform


def phi3(
    n_layers: int, n_heads: int, n_kv_heads: int, *, is_tied: bool = False, n_turned: int = 32, n_short: int = 0
) -> Made:
    """Of Phi 3, 3.5 and 4; those for long contexts have other factors beyond ``n_short`` tokens."""
    n_embd, n_ff, dim = n_heads * 32, 384, 32
    made = dense("phi3", n_layers, n_embd, n_heads, n_kv_heads, dim, n_ff)
    made.entries |= {"rope.dimension_count": n_turned, "attention.sliding_window": 64}
    for layer in range(n_layers):
        del made.tensors[f"blk.{layer}.ffn_gate.weight"]
        made.add(f"blk.{layer}.ffn_up", 2 * n_ff, n_embd)
    if not is_tied:
        made.add("output", N_VOCAB, n_embd)
    if n_short:
        add_factors(made, n_turned, n_short)
    return fuse_qkv(made)


def add_factors(made: Made, n_turned: int, n_short: int) -> None:
    """Factors of the rotary embedding for contexts of up to ``n_short`` tokens, and for longer ones."""
    made.entries["rope.scaling.original_context_length"] = n_short
    made.entries["rope.scaling.attn_factor"] = 1.19
    made.add("rope_factors_long", n_turned // 2, draw=uniform(1.0, 32.0))
    made.add("rope_factors_short", n_turned // 2, draw=uniform(1.0, 2.0))


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "phi3 3.5 mini long": lambda: phi3(3, 6, 6, n_short=64),
    "phi3 3.5 mini short": lambda: phi3(3, 6, 6, n_short=CONTEXT),
    "phi3 4 mini": lambda: phi3(4, 6, 2, is_tied=True, n_turned=24, n_short=64),
    "phi3 4": lambda: phi3(5, 8, 2),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "phi3": lambda: phi3(2, 4, 2, n_turned=24, n_short=8),
}
"""With which headers are falsified."""
