"""Specs of llama models without a file: any dimensions, any types."""

from collections.abc import Mapping

from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.spec import Entry, ModelSpec, TensorSpec


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
    n_context_train: int = 512,
    rope_factors: bool = False,
    entries: Mapping[str, Entry] | None = None,
) -> ModelSpec:
    """``types`` by tensor name without ``.weight``, by its last part, or ``*``; else F16. Norms are F32. ``entries`` of
    the metadata in addition."""
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
    made: dict[str, Entry] = {
        "block_count": n_layers,
        "embedding_length": n_embd,
        "context_length": n_context_train,
        "feed_forward_length": n_ff,
        "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": head_dim,
    }
    return ModelSpec(
        architecture="llama",
        name="made",
        digest="made",
        n_layers=n_layers,
        n_embd=n_embd,
        n_vocab=n_vocab,
        n_context_train=n_context_train,
        embedding=tensors["token_embd.weight"],
        entries={**made, **(entries or {})},
        tensors=tensors,
    )
