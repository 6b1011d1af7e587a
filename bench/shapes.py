"""The shapes of well-known models: dimensions, vocabulary and rotary embedding as their makers published them. Data."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tpi.errors import UsageError
from tpi.gguf.types import F32, TYPES_BY_NAME, TensorType


@dataclass(frozen=True)
class RopeFactors:
    """Frequencies of long wavelengths are divided by ``factor`` (Llama 3.1); wavelengths are compared with
    ``context`` divided by ``low`` and ``high``."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192


@dataclass(frozen=True)
class Shape:
    """A model's dimensions. ``vocabulary`` is the kind of tokenizer: ``llama`` (SentencePiece) or ``gpt2`` (BPE)."""

    name: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    n_ff: int
    n_vocab: int
    n_context: int
    rope_base: float = 10000.0
    rope_factors: RopeFactors | None = None
    rms_eps: float = 1e-5
    vocabulary: str = "llama"

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_heads


@dataclass(frozen=True)
class TensorShape:
    """One tensor: ``n_columns`` (contiguous) by ``n_rows`` values; ``n_rows`` 0 is a vector."""

    name: str
    type: TensorType
    n_columns: int
    n_rows: int = 0

    @property
    def n_bytes(self) -> int:
        return max(1, self.n_rows) * self.type.row_bytes(self.n_columns)


_LLAMA_3 = {"rope_base": 500000.0, "rope_factors": RopeFactors(), "vocabulary": "gpt2"}
_ALL = (
    Shape("tinyllama-1.1b", 22, 2048, 32, 4, 5632, 32000, 2048),
    Shape("llama-2-3b-like", 26, 3200, 32, 32, 8640, 32000, 2048, rms_eps=1e-6),  # OpenLLaMA: no such Llama 2 exists
    Shape("llama-2-7b", 32, 4096, 32, 32, 11008, 32000, 4096),
    Shape("llama-2-13b", 40, 5120, 40, 40, 13824, 32000, 4096),
    Shape("llama-3.1-8b", 32, 4096, 32, 8, 14336, 128256, 131072, **_LLAMA_3),  # type: ignore[arg-type]
    Shape("llama-2-70b", 80, 8192, 64, 8, 28672, 32000, 4096),
    Shape("llama-3.1-70b", 80, 8192, 64, 8, 28672, 128256, 131072, **_LLAMA_3),  # type: ignore[arg-type]
    Shape("yi-34b", 60, 7168, 56, 8, 20480, 64000, 4096, rope_base=5000000.0),
    Shape("llama-3.1-405b", 126, 16384, 128, 8, 53248, 128256, 131072, **_LLAMA_3),  # type: ignore[arg-type]
)
SHAPES = {shape.name: shape for shape in _ALL}

_MIXTURES: dict[str, Callable[[str], str]] = {
    "q4_k_m": lambda role: "Q6_K" if role in ("attn_v", "ffn_down", "output") else "Q4_K",
    "q5_k_m": lambda role: "Q6_K" if role in ("attn_v", "ffn_down", "output") else "Q5_K",
}
"""What the usual files of these names have most of; there, only some layers have the finer type."""


def find_shape(name: str) -> Shape:
    """The shape called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in SHAPES:
        raise UsageError(f"--shape {name!r} is not known; known are {', '.join(SHAPES)}")
    return SHAPES[name]


def type_of(quantisation: str, role: str) -> TensorType:
    """The type of the matrices ``role`` (``attn_q``, ``output``, …) in a file of ``quantisation`` (``q4_0``, …).

    Raises:
        UsageError: there is no such quantisation.
    """
    name = quantisation.lower()
    chosen = _MIXTURES[name](role) if name in _MIXTURES else name.upper()
    if chosen not in TYPES_BY_NAME:
        known = ", ".join((*_MIXTURES, *(known.lower() for known in TYPES_BY_NAME)))
        raise UsageError(f"--quant {quantisation!r} is not known; known are {known}")
    return TYPES_BY_NAME[chosen]


def tensors_of(shape: Shape, quantisation: str) -> list[TensorShape]:
    """Every tensor of the model, in the order of usual files."""
    result: list[TensorShape] = []

    def matrix(name: str, n_columns: int, n_rows: int) -> None:
        kind = type_of(quantisation, name.split(".")[-1])
        result.append(TensorShape(f"{name}.weight", kind, n_columns, n_rows))

    def vector(name: str, n_values: int) -> None:
        result.append(TensorShape(f"{name}.weight", F32, n_values))

    heads, kv_heads = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    matrix("token_embd", shape.n_embd, shape.n_vocab)
    if shape.rope_factors is not None:
        vector("rope_freqs", shape.head_dim // 2)
    for layer in range(shape.n_layers):
        at = f"blk.{layer}."
        vector(at + "attn_norm", shape.n_embd)
        matrix(at + "attn_q", shape.n_embd, heads)
        matrix(at + "attn_k", shape.n_embd, kv_heads)
        matrix(at + "attn_v", shape.n_embd, kv_heads)
        matrix(at + "attn_output", heads, shape.n_embd)
        vector(at + "ffn_norm", shape.n_embd)
        matrix(at + "ffn_gate", shape.n_embd, shape.n_ff)
        matrix(at + "ffn_up", shape.n_embd, shape.n_ff)
        matrix(at + "ffn_down", shape.n_ff, shape.n_embd)
    vector("output_norm", shape.n_embd)
    matrix("output", shape.n_embd, shape.n_vocab)
    return result


def rope_divisors(shape: Shape) -> list[float]:
    """What each rotation's frequency is divided by; all of them after Llama 3.1's own rule."""
    scaling = shape.rope_factors
    assert scaling is not None
    divisors = []
    for pair in range(shape.head_dim // 2):
        wavelength = 2 * math.pi * shape.rope_base ** (2 * pair / shape.head_dim)
        # 1 for short wavelengths, 0 for long ones, in between linear in the turns made within the old context
        blend = (scaling.context / wavelength - scaling.low) / (scaling.high - scaling.low)
        blend = min(1.0, max(0.0, blend))
        divisors.append(1 / ((1 - blend) / scaling.factor + blend))
    return divisors
