"""deepseek2 with random weights: DeepSeek V2 and V3, and what is written as these. Called by tests only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tests.variants.made import (
    N_VOCAB,
    Entries,
    Made,
    add_ends,
    add_experts,
    add_ffn,
    add_router,
    base_entries,
    exactly,
    normal,
)
from tests.variants.topics import Choice

_N_HEADS, _NOPE, _ROPE, _VALUE = 4, 32, 32, 32
_KEY, _N_LORA_KV, _N_LORA_Q = _NOPE + _ROPE, 64, 64
_SOFTMAX, _SIGMOID = 1, 2


@dataclass(frozen=True)
class Shape:
    """What differs between the models.

    ``n_layers`` are those that are evaluated; behind them stand ``n_predicting``. ``gating``: which function makes
    probabilities of the router's logits; None, if the file does not say. ``is_unsplit``: keys and values come from one
    matrix, and cells hold every head's.
    """

    n_layers: int
    n_embd: int
    n_experts: int
    more: Entries
    n_dense: int = 1
    n_shared_experts: int = 1
    n_expert_ff: int = 32
    gating: int | None = _SOFTMAX
    has_selection_bias: bool = False
    has_q_lora: bool = True
    n_predicting: int = 0
    is_unsplit: bool = False
    is_fused: bool = False
    architecture: str = "deepseek2"

    def choose(self, layer: int) -> Choice:
        """How experts are chosen in the layer."""
        biases = np.roll(np.linspace(-0.3, 0.3, self.n_experts), 7 * layer) if self.has_selection_bias else np.array([])
        return Choice(
            is_sigmoid=self.has_selection_bias,
            biases=tuple(biases),
            n_groups=self.more.get("expert_group_count", 1),
            n_used_groups=self.more.get("expert_group_used_count", 1),
        )


def _yarn(factor: float, log_multiplier: float) -> Entries:
    return {
        "context_length": int(64 * factor),
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_log_multiplier": log_multiplier,
    }


def deepseek2(shape: Shape) -> Made:
    """Attention through a latent vector, leading dense layers, then experts."""
    n_embd, n_all = shape.n_embd, shape.n_layers + shape.n_predicting
    made = Made(shape.architecture, base_entries(n_all, n_embd, _N_HEADS, 1, _N_LORA_KV + _ROPE, 4 * n_embd))
    made.entries |= {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": N_VOCAB,
        "leading_dense_block_count": shape.n_dense,
        "attention.kv_lora_rank": _N_LORA_KV,
        "attention.value_length": _N_LORA_KV,
        "attention.key_length_mla": _KEY,
        "attention.value_length_mla": _VALUE,
        "rope.dimension_count": _ROPE,
        "expert_count": shape.n_experts,
        "expert_used_count": 4,
        "expert_feed_forward_length": shape.n_expert_ff,
        "expert_shared_count": shape.n_shared_experts,
    }
    if shape.has_q_lora:
        made.entries["attention.q_lora_rank"] = _N_LORA_Q
    if shape.gating is not None:
        made.entries["expert_gating_func"] = shape.gating
    if shape.n_predicting:
        made.entries["nextn_predict_layers"] = shape.n_predicting
    if shape.is_unsplit:
        del made.entries["attention.key_length_mla"], made.entries["attention.value_length_mla"]
        made.entries |= {
            "attention.head_count_kv": _N_HEADS,
            "attention.key_length": _KEY,
            "attention.value_length": _VALUE,
        }
    made.entries |= shape.more
    add_ends(made, n_embd)
    for layer in range(n_all):
        at = f"blk.{layer}."
        _add_attention(made, at, shape)
        made.add(at + "ffn_norm", n_embd)
        if layer < shape.n_dense:
            add_ffn(made, at, n_embd, 4 * n_embd)
        else:
            choice = shape.choose(layer)
            add_router(made, at, n_embd, shape.n_experts, choice)
            if choice.biases:
                made.add(at + "exp_probs_b.bias", shape.n_experts, draw=exactly(choice.biases))
            add_experts(made, at, n_embd, shape.n_expert_ff, shape.n_experts, is_fused=shape.is_fused)
            add_ffn(made, at, n_embd, shape.n_expert_ff * shape.n_shared_experts, "_shexp")
        if layer >= shape.n_layers:
            _add_prediction(made, at, n_embd)
    return made


def _add_attention(made: Made, at: str, shape: Shape) -> None:
    n_embd = shape.n_embd
    made.add(at + "attn_norm", n_embd)
    if shape.has_q_lora:
        made.add(at + "attn_q_a", _N_LORA_Q, n_embd)
        made.add(at + "attn_q_a_norm", _N_LORA_Q)
        made.add(at + "attn_q_b", _N_HEADS * _KEY, _N_LORA_Q)
    else:
        made.add(at + "attn_q", _N_HEADS * _KEY, n_embd)
    made.add(at + "attn_kv_a_mqa", _N_LORA_KV + _ROPE, n_embd)
    made.add(at + "attn_kv_a_norm", _N_LORA_KV)
    if shape.is_unsplit:
        made.add(at + "attn_kv_b", _N_HEADS * (_NOPE + _VALUE), _N_LORA_KV)
    else:
        made.add(at + "attn_k_b", _N_HEADS, _N_LORA_KV, _NOPE, draw=normal(_N_LORA_KV**-0.5))
        made.add(at + "attn_v_b", _N_HEADS, _VALUE, _N_LORA_KV)
    made.add_output(at + "attn_output", n_embd, _N_HEADS * _VALUE)


def _add_prediction(made: Made, at: str, n_embd: int) -> None:
    """What a block has that predicts a token further on; llama.cpp does not evaluate it."""
    made.add(at + "nextn.eh_proj", n_embd, 2 * n_embd)
    made.add(at + "nextn.enorm", n_embd)
    made.add(at + "nextn.hnorm", n_embd)
    made.add(at + "nextn.embed_tokens", N_VOCAB, n_embd)
    made.add(at + "nextn.shared_head_head", N_VOCAB, n_embd)
    made.add(at + "nextn.shared_head_norm", n_embd)


_LITE = Shape(
    27,
    256,
    16,
    {"expert_weights_scale": 1.0, "expert_group_count": 1, "expert_group_used_count": 1, **_yarn(40.0, 0.0707)},
    has_q_lora=False,
    n_shared_experts=2,
)
_V2 = Shape(
    60,
    96,
    24,
    {"expert_weights_scale": 4.0, "expert_group_count": 8, "expert_group_used_count": 3, **_yarn(40.0, 0.0707)},
    n_shared_experts=2,
)
_V3 = Shape(
    61,
    96,
    24,
    {
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_group_count": 8,
        "expert_group_used_count": 4,
        **_yarn(40.0, 0.1),
    },
    n_dense=3,
    gating=_SIGMOID,
    has_selection_bias=True,
)
_GLM = Shape(
    47,
    128,
    16,
    {
        "expert_weights_scale": 1.8,
        "expert_weights_norm": True,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "rope.freq_base": 1000000.0,
    },
    gating=_SIGMOID,
    has_selection_bias=True,
    n_predicting=1,
)
_MISTRAL = Shape(
    61,
    128,
    16,
    {
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        **_yarn(36.0, 0.1),
        "attention.temperature_scale": 0.1,
        "attention.temperature_length": 64,
    },
    n_dense=3,
)
_SMALL_4 = replace(_MISTRAL, n_layers=6, n_dense=0, is_fused=True, architecture="mistral4")
_OLD = {"expert_weights_scale": 1.0, **_yarn(40.0, 0.0707)}

VARIANTS: Mapping[str, Callable[[], Made]] = {
    "deepseek2 V2-Lite": lambda: deepseek2(_LITE),
    "deepseek2 V2-Lite fused": lambda: deepseek2(replace(_LITE, is_fused=True)),
    "deepseek2 V2-Lite unsplit": lambda: deepseek2(replace(_LITE, more=_OLD, gating=None, is_unsplit=True)),
    "deepseek2 V2": lambda: deepseek2(_V2),
    "deepseek2 V3": lambda: deepseek2(_V3),
    "deepseek2 V3 predicting": lambda: deepseek2(replace(_V3, n_predicting=1)),
    "deepseek2 GLM-4.7-Flash": lambda: deepseek2(_GLM),
    "deepseek2 GLM-4.7-Flash silent": lambda: deepseek2(
        replace(_GLM, gating=None, more={**_GLM.more, "vocab_size": 154880})
    ),
    "deepseek2 Mistral-Large-3": lambda: deepseek2(_MISTRAL),
    "mistral4 119B": lambda: deepseek2(_SMALL_4),
    "mistral4 119B split": lambda: deepseek2(
        replace(_SMALL_4, n_layers=4, is_fused=False, more=_MISTRAL.more | _yarn(36.0, 0.0707))
    ),
    "deepseek2 GigaChat3": lambda: deepseek2(replace(_GLM, n_layers=26, n_predicting=0, has_q_lora=False)),
    "deepseek2 Kanana-2": lambda: deepseek2(
        replace(_GLM, n_layers=48, n_predicting=0, has_q_lora=False, more={**_GLM.more, "vocab_size": 128256})
    ),
}
"""GLM-4.7-Flash silent does not say how it gates: llama.cpp takes the sigmoid because of the size of its vocabulary. By
layers and vocabulary it also knows whose queries have no latent vector."""
_GROUPED = {"expert_group_count": 4, "expert_group_used_count": 2}
SMALL: Mapping[str, Callable[[], Made]] = {
    "deepseek2": lambda: deepseek2(replace(Shape(2, 64, 16, _GROUPED), has_q_lora=False)),
    "deepseek2, predicting": lambda: deepseek2(Shape(2, 64, 16, _GROUPED, gating=2, n_predicting=1)),
    "deepseek2, unsplit": lambda: deepseek2(Shape(2, 64, 16, {}, is_unsplit=True)),
}
"""With which headers are falsified."""
