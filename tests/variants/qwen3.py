"""qwen3 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import N_VOCAB, Made, add_scales, dense, fuse_qkv


def qwen3(is_tied: bool = False, n_layers: int = 28) -> Made:
    """Of 0.6B (28 layers, tied) and 8B (36, untied)."""
    made = dense("qwen3", n_layers, 256, 6, 2, 32, 512)
    for layer in range(n_layers):
        made.add(f"blk.{layer}.attn_q_norm", 32)
        made.add(f"blk.{layer}.attn_k_norm", 32)
    if not is_tied:
        made.add("output", N_VOCAB, 256)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "qwen3 0.6B": lambda: qwen3(is_tied=True),
    "qwen3 8B": lambda: qwen3(n_layers=36),
    "qwen3 8B fused": lambda: fuse_qkv(qwen3(n_layers=36)),
    "qwen3 8B scaled": lambda: add_scales(qwen3(n_layers=36)),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "qwen3": lambda: qwen3(n_layers=2),
}
"""With which headers are falsified."""
