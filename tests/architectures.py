"""Small models with random weights of every architecture, as llama.cpp loads them. Called by tests only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models import add_tokenizer, write_model

N_VOCAB, CONTEXT = 517, 512
Entries = dict[str, Any]


@dataclass
class Made:
    """What a file has: entries under the architecture's name, and tensors by name, shapes as numpy's."""

    architecture: str
    entries: Entries
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, name: str, *shape: int) -> None:
        """A tensor of so many rows and columns, or a vector of so many values."""
        self.shapes[name if "." in name.split(".")[-1] else f"{name}.weight"] = shape


def _dense(
    architecture: str, n_layers: int, n_embd: int, n_heads: int, n_kv_heads: int, head_dim: int, n_ff: int, **more: Any
) -> Made:
    """What nearly all models have: entries, embedding, and the matrices of attention and FFN."""
    entries = {
        "context_length": CONTEXT,
        "embedding_length": n_embd,
        "block_count": n_layers,
        "feed_forward_length": n_ff,
        "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": N_VOCAB,
        **more,
    }
    made = Made(architecture, entries)
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
        del made.shapes[f"blk.{layer}.ffn_norm.weight"]
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
}


def write_made(path: Path, made: Made, kind: str = "F16", seed: int = 0) -> Path:
    """Writes a model with its matrices in the type ``kind``."""
    random, tensors = np.random.default_rng(seed), []
    for name, shape in made.shapes.items():
        if _is_norm(name, shape):
            values = random.uniform(0.8, 1.2, shape)
        else:
            values = random.standard_normal(shape) * (1.0 if name.startswith("token_embd") else shape[-1] ** -0.5)
        tensors.append((name, values.astype(np.float32)))

    def add_metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_name(f"random {made.architecture}")
        for key, value in made.entries.items():
            _add_entry(writer, f"{made.architecture}.{key}", value)
        add_tokenizer(writer, N_VOCAB)

    def type_of(name: str) -> str:
        return "F32" if _is_norm(name, made.shapes[name]) else kind

    return write_model(path, made.architecture, tensors, type_of, add_metadata)


def _is_norm(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 or "norm" in name


def _add_entry(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))
