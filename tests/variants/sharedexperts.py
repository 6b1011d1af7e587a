"""Architectures of ``families/sharedexperts.py`` with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import (
    Entries,
    Made,
    add_ends,
    add_experts,
    add_ffn,
    add_router,
    base_entries,
    exactly,
    fuse_qkv,
)
from tests.variants.topics import Choice

_EMBD, _HEAD, _FF, _WIDTH, _N_HEADS = 128, 32, 160, 64, 6
_BIASES = tuple(0.002 * number for number in range(8))
_CHOICE = Choice(is_sigmoid=True, biases=_BIASES)


def shared_experts(
    architecture: str,
    n_layers: int,
    *,
    n_kv_heads: int = 2,
    n_turned: int = _HEAD // 2,
    n_shared: int = _WIDTH,
    choice: Choice = _CHOICE,
    is_normed: bool = True,
    is_biased: bool = False,
    ffn_norm: str = "ffn_norm",
    n_predicting: int = 0,
    entries: Entries | None = None,
) -> Made:
    """The first layer is dense; in the others a token uses 4 of 8 experts, and ``n_shared`` columns of shared ones."""
    n_heads = _EMBD // _HEAD if architecture == "bailingmoe2" else _N_HEADS
    n_kv = n_kv_heads or n_heads
    made = Made(architecture, base_entries(n_layers, _EMBD, n_heads, n_kv, _HEAD, _FF))
    made.entries |= {
        "rope.dimension_count": n_turned,
        "leading_dense_block_count": 1,
        "expert_count": 8,
        "expert_used_count": 4,
        "expert_feed_forward_length": _WIDTH,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        **(entries or {}),
    }
    if n_predicting:
        made.entries["nextn_predict_layers"] = n_predicting
    add_ends(made, _EMBD)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", _EMBD)
        for name, n in (("q", n_heads), ("k", n_kv), ("v", n_kv)):
            made.add(f"{at}attn_{name}", n * _HEAD, _EMBD)
            if is_biased:
                made.add(f"{at}attn_{name}.bias", n * _HEAD)
            if is_normed and name != "v":
                made.add(f"{at}attn_{name}_norm", _HEAD)
        made.add_output(at + "attn_output", _EMBD, n_heads * _HEAD)
        made.add(at + ffn_norm, _EMBD)
        if not layer:
            add_ffn(made, at, _EMBD, _FF)
            continue
        add_router(made, at, _EMBD, 8, choice)
        if choice.biases:
            made.add(at + "exp_probs_b.bias", 8, draw=exactly(choice.biases))
        add_experts(made, at, _EMBD, _WIDTH, 8)
        add_ffn(made, at, _EMBD, n_shared, "_shexp")
        if layer >= n_layers - n_predicting:
            made.add(at + "nextn.eh_proj", _EMBD, 2 * _EMBD)
            made.add(at + "nextn.enorm", _EMBD)
            made.add(at + "nextn.hnorm", _EMBD)
    return made


_SIGMOID: Entries = {"expert_gating_func": 2}
_LING: Entries = {**_SIGMOID, "expert_group_count": 4, "expert_group_used_count": 2}
_GROUPED = Choice(is_sigmoid=True, biases=_BIASES, n_groups=4, n_used_groups=2)
_PARTED: Entries = {"expert_shared_feed_forward_length": 96}


def _glm4moe(n_layers: int, *, is_normed: bool = False, n_predicting: int = 0) -> Made:
    return shared_experts(
        "glm4moe", n_layers, is_normed=is_normed, is_biased=True, ffn_norm="post_attention_norm",
        n_predicting=n_predicting,
    )  # fmt: skip


def _ling(n_layers: int, *, n_predicting: int = 0) -> Made:
    made = shared_experts("bailingmoe2", n_layers, choice=_GROUPED, n_predicting=n_predicting, entries=_LING)
    for layer in range(n_layers - n_predicting, n_layers):
        made.add(f"blk.{layer}.layer_output_norm", _EMBD)
    return fuse_qkv(made)


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "bailingmoe2 Ling mini": lambda: _ling(4),
    "bailingmoe2 predicting": lambda: _ling(5, n_predicting=1),
    "bailingmoe2 plain": lambda: fuse_qkv(
        shared_experts("bailingmoe2", 3, n_shared=96, choice=Choice(), entries=_PARTED | {"expert_gating_func": 1})
    ),
    "dots1": lambda: shared_experts("dots1", 4, n_kv_heads=0, n_turned=_HEAD, entries=_SIGMOID),
    "dots1 unbiased": lambda: shared_experts(
        "dots1", 3, n_kv_heads=0, n_turned=_HEAD, choice=Choice(is_sigmoid=True), entries=_SIGMOID
    ),
    "glm4moe 4.5": lambda: _glm4moe(4, is_normed=True),
    "glm4moe 4.5 Air": lambda: _glm4moe(5, n_predicting=1),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "bailingmoe2": lambda: _ling(2),
    "glm4moe": lambda: _glm4moe(2, is_normed=True),
}
"""With which headers are falsified."""
