"""Descriptions of small models with random weights, and files of them, typed as converters and quantizers type them.

Called by tests only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models import add_tensor, add_tokenizer, dequantize, quantize
from tests.variants.topics import Choice, Draw, added, router, topical
from tpi.gguf.types import TYPES_BY_NAME

N_VOCAB, CONTEXT = 517, 512
Entries = dict[str, Any]

_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""What llama.cpp's quantizer takes where the columns are not whole blocks; F16 where those do not fit either."""

_UNQUANTIZED = ("F32", "F16", "BF16")


def normal(std: float) -> Draw:
    """Values around zero."""
    return lambda random, shape: random.standard_normal(shape) * std


def uniform(low: float, high: float) -> Draw:
    """Values between the two."""
    return lambda random, shape: random.uniform(low, high, shape)


def exactly(values: Sequence[float]) -> Draw:
    """These values."""
    return lambda random, shape: np.array(values).reshape(shape)


@dataclass(frozen=True)
class Tensor:
    """Its shape as numpy's: experts, rows, columns. ``kind`` is its type, if not that of the model's matrices."""

    shape: tuple[int, ...]
    draw: Draw
    kind: str | None = None


@dataclass
class Made:
    """What a file has: entries under the architecture's name, and tensors by name."""

    architecture: str
    entries: Entries
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, *shape: int, draw: Draw | None = None, kind: str | None = None) -> None:
        """A vector of so many values, a matrix of so many rows and columns, or so many matrices. Names without a suffix
        are weights."""
        full = name if name.endswith((".bias", ".scale", ".ssm_a", ".ssm_d")) else f"{name}.weight"
        self.tensors[full] = Tensor(shape, draw or _usual_draw(full, shape), kind)

    def add_output(self, name: str, *shape: int, kind: str | None = None) -> None:
        """What makes what a layer adds to embeddings: matrices, biases or norms."""
        usual = _usual_draw(name, shape)
        is_matrix = len(shape) > 1 and not name.endswith(".bias")
        self.add(name, *shape, draw=added(usual, self.entries["block_count"], -2 if is_matrix else -1), kind=kind)


def base_entries(
    n_layers: int, n_embd: int, n_heads: int, n_kv_heads: int, head_dim: int, n_ff: int, **more: Any
) -> Entries:
    """What nearly all files have; ``more`` is added and wins."""
    return {
        "context_length": CONTEXT,
        "embedding_length": n_embd,
        "block_count": n_layers,
        "feed_forward_length": n_ff,
        "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        **more,
    }


def dense(
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


def add_ends(made: Made, n_embd: int) -> None:
    """Embedding, last norm and head."""
    made.add("token_embd", N_VOCAB, n_embd, draw=topical(1.0))
    made.add("output_norm", n_embd)
    made.add("output", N_VOCAB, n_embd)


def add_ffn(made: Made, at: str, n_embd: int, n_ff: int, suffix: str = "") -> None:
    """Gate, up and down; ``suffix`` is of the expert that all tokens share."""
    made.add(f"{at}ffn_gate{suffix}", n_ff, n_embd)
    made.add(f"{at}ffn_up{suffix}", n_ff, n_embd)
    made.add_output(f"{at}ffn_down{suffix}", n_embd, n_ff)


def fuse_qkv(made: Made) -> Made:
    """Queries, keys and values of every layer in one tensor, and their biases."""
    for layer in range(made.entries["block_count"]):
        at = f"blk.{layer}.attn_"
        for ending, suffix in ((".weight", ""), (".bias", ".bias")):
            parts = [made.tensors.pop(f"{at}{name}{ending}", None) for name in "qkv"]
            shapes = [part.shape for part in parts if part is not None]
            if shapes:
                made.add(f"{at}qkv{suffix}", sum(n_rows for n_rows, *_ in shapes), *shapes[0][1:])
    return made


def add_scales(made: Made) -> Made:
    """A number beside every matrix of attention and FFN, one for each expert."""
    for name, tensor in list(made.tensors.items()):
        kind = name.split(".")[-2]
        if kind in _SCALED and len(tensor.shape) > 1:
            shape = tensor.shape[:1] if len(tensor.shape) > 2 else (1,)
            made.add(name.removesuffix(".weight") + ".scale", *shape, draw=uniform(0.5, 1.5))
    return made


_SCALED = {
    *(f"attn_{name}" for name in ("q", "k", "v", "output")),
    *(f"ffn_{name}{suffix}" for name in ("gate", "up", "down") for suffix in ("", "_exps", "_shexp")),
}


def add_experts(
    made: Made, at: str, n_embd: int, n_ff: int, n_experts: int, *, is_fused: bool = False, kind: str | None = None
) -> None:
    """Every expert's gate, up and down; gate and up in one tensor, if fused."""
    if is_fused:
        made.add(f"{at}ffn_gate_up_exps", n_experts, 2 * n_ff, n_embd, kind=kind)
    else:
        made.add(f"{at}ffn_gate_exps", n_experts, n_ff, n_embd, kind=kind)
        made.add(f"{at}ffn_up_exps", n_experts, n_ff, n_embd, kind=kind)
    made.add_output(f"{at}ffn_down_exps", n_experts, n_embd, n_ff, kind=kind)


def add_router(
    made: Made, at: str, n_embd: int, n_experts: int, choice: Choice | None = None, scale: float = 1.0
) -> None:
    """``scale``: by how much its rows are smaller than normed ones."""
    made.add(at + "ffn_gate_inp", n_experts, n_embd, draw=router(choice or Choice(), scale))


def write_made(path: Path, made: Made, kind: str = "F16", seed: int = 0, unrounded: Path | None = None) -> Path:
    """Writes a model with its matrices in the type ``kind``, or as llama.cpp's quantizer would for that; to
    ``unrounded`` one with the same weights in F32, with which kernels do not round activations to fewer bits."""
    random = np.random.default_rng(seed)
    writers = [_begin(path, made), *([_begin(unrounded, made)] if unrounded else [])]
    for name, tensor in made.tensors.items():
        values = tensor.draw(random, tensor.shape).astype(np.float32)
        type_name = _type_of(name, tensor, kind)
        rows = quantize(values.reshape(-1, tensor.shape[-1]), type_name)
        add_tensor(writers[0], name, rows.reshape(*tensor.shape[:-1], -1), type_name)
        if unrounded:
            same = dequantize(rows, type_name, tensor.shape[-1])
            add_tensor(writers[1], name, same.reshape(tensor.shape), "F32")
    for writer in writers:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _begin(path: Path, made: Made) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(str(path), made.architecture)
    writer.add_name("random weights")  # by some names llama.cpp expects tokens that are not there
    for key, value in made.entries.items():
        add_entry(writer, key if key.startswith("xielu.") else f"{made.architecture}.{key}", value)
    add_tokenizer(writer, N_VOCAB)
    return writer


def _usual_draw(name: str, shape: tuple[int, ...]) -> Draw:
    if name.endswith(".bias"):
        return normal(0.1)
    if len(shape) == 1 or "norm" in name:
        return uniform(0.8, 1.2)
    return normal(1.0 if name.startswith("token_embd") else shape[-1] ** -0.5)


def _type_of(name: str, tensor: Tensor, kind: str) -> str:
    """Vectors, norms, biases, scales, routers and convolutions are F32 always."""
    is_weight = name.endswith(".weight") and len(tensor.shape) > 1
    if not is_weight or any(part in name for part in ("norm", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv")):
        return "F32"
    wanted = tensor.kind or kind
    if "per_layer_model_proj" in name:
        return wanted if wanted in _UNQUANTIZED else "F16"
    for type_name in (wanted, _FALLBACKS.get(wanted, "F16")):
        if tensor.shape[-1] % TYPES_BY_NAME[type_name].block_elements == 0:
            return type_name
    return "F16"


def add_entry(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Of the type that the value has; integers are u32."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else list(value))
