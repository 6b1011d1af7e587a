"""The ``llama`` architecture: Llama 2 and 3, Mistral, TinyLlama, Yi and others with the same blocks."""

from math import log

from tpi.errors import UnsupportedModelError
from tpi.gguf.reader import Gguf, GgufTensor
from tpi.model.metadata import Metadata, printable
from tpi.model.spec import Axis, Block, BlockKind, Measure, ModelSpec, Rope, Slot, TensorSpec
from tpi.model.steps import Steps, V

NAME = "llama"

_EMBEDDING, _HEAD, _HEAD_NORM, _ROPE_FACTORS = (
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "rope_freqs.weight",
)


def read_spec(gguf: Gguf, digest: str) -> ModelSpec:
    """The model in ``gguf``.

    Raises:
        ModelFileError: a required entry is missing or has an impossible value.
        UnsupportedModelError: experts, biases, long-rope or another feature that is not computed.
    """
    meta = Metadata(gguf, NAME)
    if meta.integer("expert_count", 0):
        raise UnsupportedModelError(f"{meta.file}: models with experts (MoE) are not supported yet")
    n_embd, n_heads = meta.integer("embedding_length"), meta.uniform("attention.head_count")
    n_kv_heads = meta.uniform("attention.head_count_kv", n_heads)
    meta.require(n_heads > 0, "attention.head_count", n_heads)
    head_dim = meta.integer("attention.key_length", n_embd // n_heads)
    value_dim = meta.integer("attention.value_length", head_dim)
    meta.require(value_dim == head_dim, "attention.value_length", value_dim)
    embedding = _tensor(meta, gguf, _EMBEDDING)
    spec = ModelSpec(
        architecture=NAME,
        name=printable(meta.text("general.name", meta.file.stem)),
        digest=digest,
        n_layers=meta.integer("block_count"),
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ff=meta.uniform("feed_forward_length"),
        n_vocab=embedding.n_rows,
        n_context_train=meta.integer("context_length"),
        rms_eps=meta.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(meta, head_dim),
        embedding=embedding,
        tensors={name: _spec_of(tensor) for name, tensor in gguf.tensors.items()},
    )
    check(meta, spec)
    return spec


def _spec_of(tensor: GgufTensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.type.id, tensor.n_columns, tensor.n_rows)


def _tensor(meta: Metadata, gguf: Gguf, name: str) -> TensorSpec:
    meta.require_tensor(name in gguf.tensors, name)
    return _spec_of(gguf.tensors[name])


def _rope(meta: Metadata, head_dim: int) -> Rope:
    """Rope scaling as llama.cpp derives it from the same keys (the yarn factor: Peng et al. 2023, section 3.4)."""
    n_dims = meta.integer("rope.dimension_count", head_dim)
    meta.require(n_dims == head_dim, "rope.dimension_count", n_dims)
    scaling = meta.text(f"{NAME}.rope.scaling.type", "linear")
    factor = meta.number("rope.scaling.factor", 0.0) or meta.number("rope.scale_linear", 0.0) or 1.0
    meta.require(1e-3 < factor < 1e6, "rope.scaling.factor", factor)
    context = meta.integer("context_length")
    extrapolation, attention_factor = 0.0, meta.number("rope.scaling.attn_factor", 1.0)
    if scaling == "yarn":
        log_mul = meta.number("rope.scaling.yarn_log_multiplier", 0.0)
        meta.require(log_mul >= 0, "rope.scaling.yarn_log_multiplier", log_mul)
        extrapolation = 1.0
        attention_factor *= _yarn_attention(factor, log_mul)
    elif scaling not in ("linear", "none"):
        raise UnsupportedModelError(f"{meta.file}: rope scaling {scaling!r} is not supported; linear and yarn are")
    return Rope(
        n_dims=n_dims,
        base=meta.number("rope.freq_base", 10000.0),
        frequency_scale=1.0 if scaling == "none" else 1.0 / factor,
        extrapolation=extrapolation,
        attention_factor=attention_factor,
        original_context=meta.integer("rope.scaling.original_context_length", context),
    )


def _yarn_attention(factor: float, log_mul: float) -> float:
    """ggml multiplies by 1 + 0.1 ln(factor) itself; this is what remains for it to be multiplied with."""
    growth = 0.1 * log(factor) if factor > 1 else 0.0
    own = (1 + growth) / (1 + log_mul * growth) if log_mul else 1 + growth
    return own / (1 + 0.1 * log(factor))


def check(meta: Metadata, spec: ModelSpec) -> None:
    """Every tensor is used and has the shape that the dimensions demand; ``meta`` names the file in errors.

    Raises:
        ModelFileError: a tensor is missing or has another shape, or the dimensions do not fit each other.
        UnsupportedModelError: there are more tensors than the architecture has.
    """
    _check_dimensions(meta, spec)
    grouped = spec.n_kv_heads > 0 and spec.n_heads > 0 and spec.n_heads % spec.n_kv_heads == 0
    meta.require(grouped, "attention.head_count_kv", spec.n_kv_heads)
    meta.require(spec.rope.n_dims == spec.head_dim, "rope.dimension_count", spec.rope.n_dims)
    meta.require(spec.embedding == spec.tensors.get(_EMBEDDING), _EMBEDDING, spec.embedding.name)
    heads, kv_heads = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    shapes = {
        "attn_norm": (spec.n_embd, 1),
        "ffn_norm": (spec.n_embd, 1),
        "head_norm": (spec.n_embd, 1),
        "rope_factors": (spec.head_dim // 2, 1),
        "q": (spec.n_embd, heads),
        "k": (spec.n_embd, kv_heads),
        "v": (spec.n_embd, kv_heads),
        "o": (heads, spec.n_embd),
        "gate": (spec.n_embd, spec.n_ff),
        "up": (spec.n_embd, spec.n_ff),
        "down": (spec.n_ff, spec.n_embd),
        "head": (spec.n_embd, spec.n_vocab),
    }
    used = {_EMBEDDING}
    for block in blocks(spec, meta):
        for slot in block.slots:
            shape = slot.tensor.n_columns, slot.tensor.n_rows
            meta.require(shape == shapes[slot.role], slot.tensor.name, shape)
            if slot.axis is Axis.COPY:
                meta.require(slot.tensor.type.name == "F32", f"type of {slot.tensor.name}", slot.tensor.type.name)
            used.add(slot.tensor.name)
    unknown = spec.tensors.keys() - used
    if unknown:
        raise UnsupportedModelError(
            f"{meta.file}: {len(unknown)} tensors are not of a plain llama model, e.g. {min(unknown)}; not supported"
        )


def _check_dimensions(meta: Metadata, spec: ModelSpec) -> None:
    """What the kernels take for granted: ggml ends the process on a negative epsilon or an odd head dimension."""
    positive = {
        "block_count": spec.n_layers,
        "embedding_length": spec.n_embd,
        "feed_forward_length": spec.n_ff,
        "attention.key_length": spec.head_dim,
        "context_length": spec.n_context_train,
        "rope.freq_base": spec.rope.base,
        "rope.scaling.factor": spec.rope.frequency_scale,
        "attention.layer_norm_rms_epsilon": spec.rms_eps,
    }
    for key, value in positive.items():
        meta.require(0 < value < float("inf"), key, value)
    meta.require(spec.head_dim % 2 == 0, "attention.key_length", spec.head_dim)
    factor, original = spec.rope.attention_factor, spec.rope.original_context
    meta.require(abs(factor) < float("inf"), "rope.scaling.attn_factor", factor)
    meta.require(0 <= original < 1 << 31, "rope.scaling.original_context_length", original)


def blocks(spec: ModelSpec, meta: Metadata | None = None) -> tuple[Block, ...]:
    """All blocks in execution order: attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: a tensor is missing (only with ``meta``, when a file is being checked).
    """

    def slot(role: str, name: str, axis: Axis, measure: Measure | None = None, step: int = 1) -> Slot:
        if meta is not None:
            meta.require_tensor(name in spec.tensors, name)
        return Slot(role, spec.tensors[name], axis, measure, step)

    result: list[Block] = []
    for layer in range(spec.n_layers):
        at, dim = f"blk.{layer}.", spec.head_dim
        factors = [slot("rope_factors", _ROPE_FACTORS, Axis.COPY)] if _ROPE_FACTORS in spec.tensors else []
        attention = (
            slot("attn_norm", at + "attn_norm.weight", Axis.COPY),
            slot("q", at + "attn_q.weight", Axis.ROWS, Measure.Q_HEADS, dim),
            slot("k", at + "attn_k.weight", Axis.ROWS, Measure.KV_HEADS, dim),
            *factors,
            slot("v", at + "attn_v.weight", Axis.ROWS, Measure.KV_HEADS, dim),
            slot("o", at + "attn_output.weight", Axis.COLUMNS, Measure.Q_HEADS, dim),
        )
        ffn = (
            slot("ffn_norm", at + "ffn_norm.weight", Axis.COPY),
            slot("gate", at + "ffn_gate.weight", Axis.ROWS, Measure.FFN),
            slot("up", at + "ffn_up.weight", Axis.ROWS, Measure.FFN),
            slot("down", at + "ffn_down.weight", Axis.COLUMNS, Measure.FFN),
        )
        result.append(Block(len(result), BlockKind.ATTENTION, layer, attention))
        result.append(Block(len(result), BlockKind.FFN, layer, ffn))
    head = _HEAD if _HEAD in spec.tensors else _EMBEDDING
    slots = (slot("head_norm", _HEAD_NORM, Axis.COPY), slot("head", head, Axis.ROWS, Measure.ROWS))
    result.append(Block(len(result), BlockKind.HEAD, spec.n_layers, slots))
    return tuple(result)


def build(kind: BlockKind, has_rope_factors: bool, g: Steps[V]) -> V:
    """The graph of one block; its result is this rank's partial sum, for the head its logits."""
    match kind:
        case BlockKind.ATTENTION:
            x = g.rms_norm(g.residual(), "attn_norm")
            factors = "rope_factors" if has_rope_factors else None
            q, k = g.matmul("q", x), g.matmul("k", x)
            q, k = g.rope(q, factors), g.rope(k, factors)
            return g.matmul("o", g.attention(q, k, g.matmul("v", x)))
        case BlockKind.FFN:
            x = g.rms_norm(g.residual(), "ffn_norm")
            gate = g.matmul("gate", x)
            return g.matmul("down", g.swiglu(gate, g.matmul("up", x)))
        case BlockKind.HEAD:
            return g.matmul("head", g.rms_norm(g.residual(), "head_norm"))
