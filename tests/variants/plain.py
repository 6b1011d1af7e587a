"""Architectures of ``families/plain.py`` with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import (
    N_VOCAB,
    Entries,
    Made,
    add_ends,
    add_experts,
    add_ffn,
    add_router,
    base_entries,
    dense,
    uniform,
)

_EMBD, _HEAD, _FF = 128, 32, 256
_BIASED = ("attn_q", "attn_k", "attn_v")
ALL_BIASED = (*_BIASED, "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_FACTORS: Entries = {"embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0, "attention.scale": 0.05}


def plain(
    architecture: str,
    n_layers: int = 4,
    *,
    biased: tuple[str, ...] = (),
    is_tied: bool = False,
    is_normed: bool = False,
    has_factors: bool = False,
    without: str = "",
    ffn_norm: str = "ffn_norm",
    n_heads: int = 8,
    n_embd: int = _EMBD,
    entries: Entries | None = None,
) -> Made:
    """``biased``: which matrices have a bias; ``is_normed``: heads are; ``without``: a matrix that there is not."""
    made = dense(architecture, n_layers, n_embd, n_heads, 2, _HEAD, _FF, **(entries or {}))
    for layer in range(n_layers):
        at = f"blk.{layer}."
        for name in biased:
            made.add(f"{at}{name}.bias", made.tensors[f"{at}{name}.weight"].shape[0])
        if is_normed:
            made.add(at + "attn_q_norm", _HEAD)
            made.add(at + "attn_k_norm", _HEAD)
        if without:
            del made.tensors[f"{at}{without}.weight"]
        if ffn_norm != "ffn_norm":
            made.tensors[f"{at}{ffn_norm}.weight"] = made.tensors.pop(f"{at}ffn_norm.weight")
    if has_factors:
        made.add("rope_freqs", _HEAD // 2, draw=uniform(1.0, 8.0))
    if not is_tied:
        made.add("output", N_VOCAB, n_embd)
    return made


def routed(
    architecture: str,
    n_layers: int = 4,
    *,
    n_ff: int = 64,
    n_shared: int = 0,
    n_dense: int = 0,
    is_normed: bool = False,
    has_choice_bias: bool = False,
    is_gated: bool = False,
    n_heads: int = 8,
    biased: tuple[str, ...] = (),
    has_factors: bool = False,
    entries: Entries | None = None,
) -> Made:
    """The same with experts, of which a token uses 4 of 8, behind ``n_dense`` layers. ``is_gated``: the shared
    ones are."""
    made = Made(architecture, base_entries(n_layers, _EMBD, n_heads, 2, _HEAD, n_ff))
    made.entries |= {"expert_count": 8, "expert_used_count": 4, "rope.dimension_count": _HEAD, **(entries or {})}
    add_ends(made, _EMBD)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", _EMBD)
        for name, n in (("q", n_heads), ("k", 2), ("v", 2)):
            made.add(f"{at}attn_{name}", n * _HEAD, _EMBD)
        if is_normed:
            made.add(at + "attn_q_norm", _HEAD)
            made.add(at + "attn_k_norm", _HEAD)
        made.add_output(at + "attn_output", _EMBD, n_heads * _HEAD)
        made.add(at + "ffn_norm", _EMBD)
        if layer < n_dense:
            add_ffn(made, at, _EMBD, n_ff)
            continue
        add_router(made, at, _EMBD, 8)
        add_experts(made, at, _EMBD, n_ff, 8)
        if has_choice_bias:
            made.add(at + "exp_probs_b.bias", 8, draw=uniform(0.0, 1e-4))
        if n_shared:
            add_ffn(made, at, _EMBD, n_shared, "_shexp")
        if is_gated:
            made.add(at + "ffn_gate_inp_shexp", _EMBD)
        for name in biased:
            made.add(f"{at}{name}.bias", made.tensors[f"{at}{name}.weight"].shape[0])
    if has_factors:
        made.add("rope_freqs", _HEAD // 2, draw=uniform(1.0, 8.0))
    return made


_SHARED: Entries = {"expert_shared_feed_forward_length": 96}
_HUNYUAN: Entries = {"expert_feed_forward_length": 64}
_ERNIE: Entries = {
    "expert_feed_forward_length": 64,
    "interleave_moe_layer_step": 1,
    "leading_dense_block_count": 1,
    **_SHARED,
}
_QWEN: Entries = {"expert_feed_forward_length": 64, **_SHARED}
_SILENT: Entries = {"feed_forward_length": 128}
_MISTRAL: Entries = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 16.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_beta_fast": 28.0,
    "rope.scaling.yarn_beta_slow": 2.0,
    "rope.scaling.yarn_log_multiplier": 1.0,
    "attention.temperature_scale": 0.1,
}

VARIANTS: Mapping[str, Callable[[], Made]] = {
    "arcee 4.5B": lambda: plain("arcee", 6, without="ffn_gate"),
    "ernie4_5 0.3B": lambda: plain("ernie4_5", 6, is_tied=True),
    "ernie4_5-moe 21B-A3B": lambda: routed(
        "ernie4_5-moe", n_shared=96, n_dense=1, has_choice_bias=True, entries=_ERNIE
    ),
    "granite 3B": lambda: plain("granite", 6, is_tied=True, entries=_FACTORS),
    "granite 8B biased": lambda: plain("granite", biased=ALL_BIASED, has_factors=True, entries={"logit_scale": 16.0}),
    "granite unturned": lambda: plain("granite", entries={"logit_scale": 16.0, "rope.scaling.finetuned": False}),
    "granitemoe 3B-A800M": lambda: routed("granitemoe", entries=_FACTORS),
    "granitemoe shared": lambda: routed(
        "granitemoe", n_shared=96, entries=_FACTORS | _SHARED | {"residual_scale": 0.5}
    ),
    "hunyuan-dense 7B": lambda: plain("hunyuan-dense", 6, is_normed=True),
    "hunyuan-moe A13B": lambda: routed("hunyuan-moe", n_shared=64, is_normed=True, entries=_HUNYUAN),
    "hunyuan-moe wide": lambda: routed("hunyuan-moe", n_shared=96, is_normed=True, entries=_HUNYUAN | _SHARED),
    "internlm2 7B": lambda: plain("internlm2", 6, n_embd=256),
    "llama 8x7B": lambda: routed("llama"),
    "llama biased": lambda: plain("llama", biased=ALL_BIASED, has_factors=True),
    "mistral3 experts": lambda: routed("mistral3"),
    "mistral3 8B": lambda: plain("mistral3", 6, entries=_MISTRAL),
    "mistral3 3B tied": lambda: plain("mistral3", is_tied=True, has_factors=True),
    "qwen2 0.5B": lambda: plain("qwen2", 6, biased=_BIASED, is_tied=True, n_embd=256),
    "qwen2moe A2.7B": lambda: routed("qwen2moe", n_shared=96, is_gated=True, n_heads=4, biased=_BIASED, entries=_QWEN),
    "qwen2moe silent": lambda: routed("qwen2moe", n_ff=32, n_shared=128, is_gated=True, n_heads=4, entries=_SILENT),
    "qwen2 7B": lambda: plain("qwen2", 28, biased=_BIASED, n_embd=256),
    "seed_oss 36B": lambda: plain("seed_oss", 6, biased=_BIASED, ffn_norm="post_attention_norm"),
    "smollm3 3B": lambda: plain("smollm3", 8, is_tied=True),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "granite": lambda: plain("granite", 2, entries=_FACTORS),
    "ernie4_5-moe": lambda: routed("ernie4_5-moe", 2, n_shared=96, n_dense=1, entries=_ERNIE),
    "hunyuan-moe": lambda: routed("hunyuan-moe", 2, n_shared=64, is_normed=True, entries=_HUNYUAN),
    "llama, experts": lambda: routed("llama", 2),
    "mistral3": lambda: plain("mistral3", 2, entries={"attention.temperature_scale": 0.1}),
    "qwen2": lambda: plain("qwen2", 2, biased=_BIASED, n_embd=256),
    "smollm3": lambda: plain("smollm3", 4, is_tied=True),
}
"""With which headers are falsified."""
