"""Specs of llama models without a file: any dimensions, any types."""

from collections.abc import Mapping
from typing import Any

from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.spec import ModelSpec, Rope, TensorSpec


def make_spec(
    types: Mapping[str, str] | None = None,
    *,
    n_layers: int = 2,
    n_embd: int = 256,
    n_heads: int = 8,
    n_kv_heads: int = 4,
    head_dim: int = 64,
    n_ff: int = 512,
    n_vocab: int = 300,
    rope_factors: bool = False,
    **changes: Any,
) -> ModelSpec:
    """``types`` by tensor name without ``.weight``, by its last part, or ``*``; else F16. Norms are F32."""
    types = types or {}
    q, kv = n_heads * head_dim, n_kv_heads * head_dim
    layer = {
        "attn_norm": (n_embd, 1),
        "attn_q": (n_embd, q),
        "attn_k": (n_embd, kv),
        "attn_v": (n_embd, kv),
        "attn_output": (q, n_embd),
        "ffn_norm": (n_embd, 1),
        "ffn_gate": (n_embd, n_ff),
        "ffn_up": (n_embd, n_ff),
        "ffn_down": (n_ff, n_embd),
    }
    shapes = {"token_embd": (n_embd, n_vocab), "output_norm": (n_embd, 1), "output": (n_embd, n_vocab)}
    if rope_factors:
        shapes["rope_freqs"] = (head_dim // 2, 1)
    shapes |= {f"blk.{i}.{name}": shape for i in range(n_layers) for name, shape in layer.items()}
    tensors = {}
    for name, (n_columns, n_rows) in shapes.items():
        kind = types.get(name, types.get(name.split(".")[-1], types.get("*", "F16")))
        type_name = "F32" if name.endswith("norm") or name == "rope_freqs" else kind
        tensors[f"{name}.weight"] = TensorSpec(f"{name}.weight", TYPES_BY_NAME[type_name].id, n_columns, n_rows)
    values: dict[str, Any] = {
        "architecture": "llama",
        "name": "made",
        "digest": "made",
        "n_layers": n_layers,
        "n_embd": n_embd,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "n_ff": n_ff,
        "n_vocab": n_vocab,
        "n_context_train": 512,
        "rms_eps": 1e-5,
        "rope": Rope(head_dim, 10000.0),
        "embedding": tensors["token_embd.weight"],
        "tensors": tensors,
    }
    return ModelSpec(**values | changes)
