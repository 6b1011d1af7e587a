"""Which type every tensor gets where a model is quantised as its slices are cut. Data, no I/O.

What has 32 or 16 bits a value changes, if it is a matrix that is multiplied or looked up in: all of it to the one type
that is asked for, but for the head, and the embeddings that are the head as well, which get Q6_K, or Q8_0 with that.
These are the types that llama.cpp's quantiser chooses for Q4_0, Q5_0, Q8_0 and Q6_K of dense models; of Q4_K and Q5_K
it makes mixtures, this one nothing but the one type. Where rows are not whole blocks of a type, they get the next
larger one of smaller blocks, or stay as they are.
"""

from collections.abc import Container

from tpi.errors import UsageError
from tpi.gguf.types import TYPES_BY_NAME, TensorType
from tpi.model.tensors import EMBEDDING

QUANTS = ("Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")

_SOURCES = ("F32", "F16", "BF16")
_HEAD = "output.weight"
_EMBEDDINGS = (EMBEDDING, "per_layer_token_embd.weight")
_SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_STAY = (
    "_norm.",
    "ffn_gate_inp.",
    "ssm_conv1d.",
    "shortconv.conv.",
    "per_layer_model_proj.",
    "altup",
    "laurel",
    "cls.",
)
"""In names of matrices that are small, or that others depend on."""


def check_quant(quant: str) -> str:
    """One of ``QUANTS``, however it is written.

    Raises:
        UsageError: it is none.
    """
    if quant.upper() not in QUANTS:
        raise UsageError(f"cannot quantise to {quant[:20]!r}: take one of {', '.join(QUANTS)}")
    return quant.upper()


def quantized_type(
    name: str, kind: TensorType, shape: tuple[int, int], quant: str, names: Container[str]
) -> TensorType:
    """The type that the tensor called ``name`` of (columns, rows) gets in place of ``kind``, perhaps the same;
    ``names`` are those of the model's tensors."""
    n_columns, n_rows = shape
    is_matrix = name.endswith(".weight") and n_rows > 1
    if kind.name not in _SOURCES or not is_matrix or any(part in name for part in _STAY):
        return kind
    is_head = name == _HEAD or (name in _EMBEDDINGS and _HEAD not in names)
    wanted = "Q6_K" if is_head and quant != "Q8_0" else quant
    for found in (wanted, _SMALLER.get(wanted, wanted)):
        if n_columns % TYPES_BY_NAME[found].block_elements == 0:
            return TYPES_BY_NAME[found]
    return kind
