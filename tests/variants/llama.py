"""llama with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import N_VOCAB, Made, add_scales, dense, fuse_qkv
from tests.variants.plain import ALL_BIASED, plain, routed


def llama(n_layers: int = 22, is_tied: bool = False) -> Made:
    """Of TinyLlama (22 layers) and Llama 3.2 1B (16, tied)."""
    made = dense("llama", n_layers, 256, 8, 2, 32, 512)
    if not is_tied:
        made.add("output", N_VOCAB, 256)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "llama 1.1B": llama,
    "llama 3.2 1B": lambda: llama(16, is_tied=True),
    "llama 1.1B fused, scaled": lambda: add_scales(fuse_qkv(llama())),
    "llama biased, fused": lambda: fuse_qkv(plain("llama", biased=ALL_BIASED, has_factors=True)),
    "llama 8x22B fused, scaled": lambda: add_scales(
        fuse_qkv(routed("llama", biased=("attn_output",), has_factors=True))
    ),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "llama": lambda: llama(2),
}
"""With which headers are falsified."""
