"""apertus with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import N_VOCAB, Made, dense, uniform

_EMBD, _HEAD = 192, 32


def apertus(n_layers: int, *, is_biased: bool = False, has_factors: bool = True) -> Made:
    """Of 8B and 70B. Every layer has numbers of its own for its activation."""
    made = dense("apertus", n_layers, _EMBD, 6, 2, _HEAD, 256)
    made.entries |= {
        "xielu.alpha_n": [0.8 - 0.1 * layer for layer in range(n_layers)],
        "xielu.alpha_p": [0.3 + 0.2 * layer for layer in range(n_layers)],
        "xielu.beta": [0.5 - 0.05 * layer for layer in range(n_layers)],
        "xielu.eps": [-1e-6] * n_layers,
    }
    made.add("output", N_VOCAB, _EMBD)
    if has_factors:
        made.add("rope_freqs", _HEAD // 2, draw=uniform(1.0, 8.0))
    for layer in range(n_layers):
        at = f"blk.{layer}."
        del made.tensors[at + "ffn_gate.weight"]
        made.add(at + "attn_q_norm", _HEAD)
        made.add(at + "attn_k_norm", _HEAD)
        if is_biased:
            made.add(at + "attn_output.bias", _EMBD)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "apertus 8B": lambda: apertus(4),
    "apertus biased": lambda: apertus(3, is_biased=True, has_factors=False),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "apertus": lambda: apertus(2, is_biased=True),
}
"""With which headers are falsified."""
