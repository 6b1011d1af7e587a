"""cohere2 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import Made, dense

_WINDOW = 32


def cohere2(n_layers: int, *, window: int = _WINDOW, is_listed: bool = False) -> Made:
    """Of Command R7B and Command A; ``is_listed``: files list the layers that see a window."""
    made = dense("cohere2", n_layers, 192, 6, 2, 32, 256, logit_scale=0.25)
    made.entries["attention.layer_norm_epsilon"] = made.entries.pop("attention.layer_norm_rms_epsilon")
    made.entries["attention.sliding_window"] = window
    if is_listed:
        made.entries["attention.sliding_window_pattern"] = [layer % 4 != 3 for layer in range(n_layers)]
    for layer in range(n_layers):
        del made.tensors[f"blk.{layer}.ffn_norm.weight"]
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "cohere2 R7B": lambda: cohere2(4),
    "cohere2 A": lambda: cohere2(8, is_listed=True),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "cohere2": lambda: cohere2(4, window=8),
}
"""With which headers are falsified."""
