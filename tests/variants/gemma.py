"""gemma2, gemma3 and exaone4 with random weights: sums are normed. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import N_VOCAB, Entries, Made, dense, uniform

_EMBD, _HEAD = 128, 32
_WINDOW: Entries = {"attention.sliding_window": 48}


def gemma(
    architecture: str,
    n_layers: int,
    entries: Entries | None = None,
    *,
    n_heads: int = 8,
    n_embd: int = _EMBD,
    is_normed: bool = False,
    has_head: bool = False,
    has_factors: bool = False,
) -> Made:
    """``is_normed``: heads are."""
    made = dense(architecture, n_layers, n_embd, n_heads, 2, _HEAD, 256, **(entries or {}))
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "post_attention_norm", n_embd, draw=uniform(0.3, 0.5))
        made.add(at + "post_ffw_norm", n_embd, draw=uniform(0.3, 0.5))
        if is_normed:
            made.add(at + "attn_q_norm", _HEAD)
            made.add(at + "attn_k_norm", _HEAD)
        if architecture == "exaone4":
            del made.tensors[at + "attn_norm.weight"], made.tensors[at + "ffn_norm.weight"]
    if has_head:
        made.add("output", N_VOCAB, n_embd)
    if has_factors:
        made.add("rope_freqs", _HEAD // 2, draw=uniform(1.0, 8.0))
    return made


_SCALED: Entries = _WINDOW | {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
_CAPPED: Entries = _WINDOW | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}

VARIANTS: Mapping[str, Callable[[], Made]] = {
    "gemma2 2B": lambda: gemma("gemma2", 6, _CAPPED),
    "gemma2 27B": lambda: gemma("gemma2", 46, _WINDOW),
    "gemma3 1B": lambda: gemma("gemma3", 7, _WINDOW, is_normed=True),
    "gemma3 4B": lambda: gemma("gemma3", 34, _SCALED, is_normed=True),
    "gemma3 27B": lambda: gemma("gemma3", 62, _SCALED, is_normed=True),
    "gemma3 untied, capped": lambda: gemma(
        "gemma3", 6, {"final_logit_softcapping": 20.0}, is_normed=True, has_head=True
    ),
    "exaone4 1.2B": lambda: gemma("exaone4", 6, n_embd=256, is_normed=True, has_factors=True),
    "exaone4 32B": lambda: gemma("exaone4", 64, _WINDOW, n_embd=256, is_normed=True, has_head=True, has_factors=True),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "gemma2": lambda: gemma("gemma2", 2, _CAPPED),
    "gemma3": lambda: gemma("gemma3", 2, _SCALED | {"attention.sliding_window_pattern": 2}, is_normed=True),
}
"""With which headers are falsified."""
