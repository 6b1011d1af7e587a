"""Small models with random weights of every architecture, as llama.cpp loads them. Called by tests only."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.variants_deepseek2 import DEEPSEEK2
from tests.variants_gemma4 import GEMMA4
from tests.variants_gpt_oss import GPT_OSS
from tests.variants_made import CONTEXT, N_VOCAB, Made, add_scales, base_entries, fuse_qkv, write_made
from tests.variants_olmo2 import OLMO2
from tests.variants_qwen3moe import QWEN3MOE
from tests.variants_qwen35moe import QWEN35MOE

__all__ = ["CONTEXT", "N_VOCAB", "VARIANTS", "Made", "command_r", "llama", "qwen3", "write_made"]


def _dense(
    architecture: str, n_layers: int, n_embd: int, n_heads: int, n_kv_heads: int, head_dim: int, n_ff: int, **more: Any
) -> Made:
    """What nearly all models have: entries, embedding, and the matrices of attention and FFN."""
    entries = base_entries(n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, **more)
    made = Made(architecture, {**entries, "rope.dimension_count": head_dim, "vocab_size": N_VOCAB})
    made.add("token_embd", N_VOCAB, n_embd)
    made.add("output_norm", n_embd)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", n_embd)
        made.add(at + "attn_q", n_heads * head_dim, n_embd)
        made.add(at + "attn_k", n_kv_heads * head_dim, n_embd)
        made.add(at + "attn_v", n_kv_heads * head_dim, n_embd)
        made.add(at + "attn_output", n_embd, n_heads * head_dim)
        made.add(at + "ffn_norm", n_embd)
        made.add(at + "ffn_gate", n_ff, n_embd)
        made.add(at + "ffn_up", n_ff, n_embd)
        made.add(at + "ffn_down", n_embd, n_ff)
    return made


def qwen3(is_tied: bool = False, n_layers: int = 28) -> Made:
    """Of 0.6B (28 layers, tied) and 8B (36, untied)."""
    made = _dense("qwen3", n_layers, 256, 6, 2, 32, 512)
    for layer in range(n_layers):
        made.add(f"blk.{layer}.attn_q_norm", 32)
        made.add(f"blk.{layer}.attn_k_norm", 32)
    if not is_tied:
        made.add("output", N_VOCAB, 256)
    return made


def llama(n_layers: int = 22, is_tied: bool = False) -> Made:
    """Of TinyLlama (22 layers) and Llama 3.2 1B (16, tied)."""
    made = _dense("llama", n_layers, 256, 8, 2, 32, 512)
    if not is_tied:
        made.add("output", N_VOCAB, 256)
    return made


def command_r(n_layers: int, has_norms: bool, n_heads: int = 8, n_kv_heads: int = 2) -> Made:
    """Of 35B (40 layers) and R+ (64 layers, whose heads are normed)."""
    n_embd, dim = 256, 32
    made = _dense("command-r", n_layers, n_embd, n_heads, n_kv_heads, dim, 512, logit_scale=0.0625)
    made.entries["attention.layer_norm_epsilon"] = made.entries.pop("attention.layer_norm_rms_epsilon")
    for layer in range(n_layers):
        del made.tensors[f"blk.{layer}.ffn_norm.weight"]
        if has_norms:
            made.add(f"blk.{layer}.attn_q_norm", n_heads, dim)
            made.add(f"blk.{layer}.attn_k_norm", n_kv_heads, dim)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "command-r 35B": lambda: command_r(40, has_norms=False),
    "command-r 104B": lambda: command_r(64, has_norms=True),
    "llama 1.1B": llama,
    "llama 3.2 1B": lambda: llama(16, is_tied=True),
    "qwen3 0.6B": lambda: qwen3(is_tied=True),
    "qwen3 8B": lambda: qwen3(n_layers=36),
    "qwen3 8B fused": lambda: fuse_qkv(qwen3(n_layers=36)),
    "qwen3 8B scaled": lambda: add_scales(qwen3(n_layers=36)),
    "llama 1.1B fused, scaled": lambda: add_scales(fuse_qkv(llama())),
    "qwen35moe 35B-A3B scaled": lambda: add_scales(QWEN35MOE["qwen35moe 35B-A3B"]()),
    "qwen35moe 35B-A3B fused qkv": lambda: fuse_qkv(QWEN35MOE["qwen35moe 35B-A3B"]()),
    **GPT_OSS,
    **GEMMA4,
    **DEEPSEEK2,
    **OLMO2,
    "olmo2 32B fused": lambda: fuse_qkv(OLMO2["olmo2 32B"]()),
    **QWEN3MOE,
    **QWEN35MOE,
}
