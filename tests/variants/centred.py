"""Architectures of ``families/centred.py`` with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import N_VOCAB, Made, dense, fuse_qkv

_EMBD, _HEAD, _FF, _N_HEADS = 192, 32, 256, 6
_MATRICES = ("attn_output", "ffn_up", "ffn_down")


def centred(
    architecture: str,
    n_layers: int = 4,
    *,
    n_kv_heads: int = 2,
    n_turned: int = _HEAD,
    biased: tuple[str, ...] = (),
    without: str = "",
    is_tied: bool = False,
    is_normed: bool = False,
) -> Made:
    """Norms have biases, and matrices that are ``biased``; ``without``: what there is not; ``is_normed``: heads are."""
    made = dense(architecture, n_layers, _EMBD, _N_HEADS, n_kv_heads, _HEAD, _FF)
    made.entries["attention.layer_norm_epsilon"] = made.entries.pop("attention.layer_norm_rms_epsilon")
    made.entries["rope.dimension_count"] = n_turned
    made.add("output_norm.bias", _EMBD)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        if without:
            del made.tensors[f"{at}{without}.weight"]
        for name in ("attn_norm", "ffn_norm"):
            if name != without:
                made.add(f"{at}{name}.bias", _EMBD)
        for name in biased:
            made.add(f"{at}{name}.bias", made.tensors[f"{at}{name}.weight"].shape[0])
        if is_normed:
            made.add(at + "attn_q_norm", _N_HEADS, _HEAD)
            made.add(at + "attn_k_norm", n_kv_heads, _HEAD)
    if not is_tied:
        made.add("output", N_VOCAB, _EMBD)
    return made


def _starcoder2(*, is_tied: bool = False) -> Made:
    biased = "attn_q", "attn_k", "attn_v", *_MATRICES
    return centred("starcoder2", biased=biased, without="ffn_gate", is_tied=is_tied)


def _nemotron(*, biased: tuple[str, ...] = ()) -> Made:
    return centred("nemotron", n_turned=_HEAD // 2, without="ffn_gate", biased=biased)


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "nemotron 4B": _nemotron,
    "nemotron biased": lambda: _nemotron(biased=_MATRICES),
    "stablelm 3B": lambda: centred("stablelm", n_kv_heads=6, n_turned=8),
    "stablelm 2 1.6B": lambda: centred("stablelm", n_kv_heads=6, n_turned=8, biased=("attn_q", "attn_k", "attn_v")),
    "stablelm 2 12B": lambda: centred("stablelm", n_turned=8, without="ffn_norm", is_normed=True),
    "starcoder2 3B": lambda: _starcoder2(is_tied=True),
    "starcoder2 15B": _starcoder2,
    "starcoder2 15B fused": lambda: fuse_qkv(_starcoder2()),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "nemotron": lambda: centred("nemotron", 2, n_turned=16, without="ffn_gate", biased=_MATRICES),
    "stablelm": lambda: centred("stablelm", 2, n_turned=8, without="ffn_norm", is_normed=True),
}
"""With which headers are falsified."""
