"""Writes small GGUF files with random weights, of any type that ggml computes, which llama.cpp can load as well.

Quantises through the ``gguf`` package where that can, otherwise through libggml-base. Called by tests only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import quantize as quantize_in_python

from tpi.gguf.types import TYPES_BY_NAME
from tpi.runtime.ggml.binding import ggml
from tpi.runtime.ggml.dequantize import to_float

Types = str | Mapping[str, str] | Callable[[str], str]
"""One type for all matrices; or types by short name (``attn_q``, ``output``, ``token_embd``; ``*`` for the rest, else
F16); or a function from the tensor's full name to its type. Norms and rope factors are F32 always."""

Q4_K_M = {"*": "Q4_K", "attn_v": "Q6_K", "ffn_down": "Q6_K", "output": "Q6_K"}
"""A mixture as llama.cpp's files of that name have it."""

_BY_PACKAGE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_SEED = 11
END_TOKEN = 2
_N_BYTE_TOKENS = 256


def write_random_model(
    path: Path,
    *,
    n_layers: int = 2,
    n_embd: int = 256,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 64,
    n_ff: int = 512,
    n_vocab: int = 320,
    types: Types = "F16",
    tied: bool = False,
    rope_factors: bool = False,
    rope_scaling: tuple[str, float] | None = None,
    seed: int = 0,
    context: int = 512,
    split: int | None = None,
    ends: bool = True,
) -> Path:
    """Writes a llama model to ``path``; returns the path to open (the first of ``split`` files, if there are several).

    ``rope_scaling`` is ("linear" or "yarn", factor); ``split`` writes STEM-00001-of-0000N.gguf and so on instead.
    Without ``ends`` it talks until it is stopped: the token that ends a text is never among the likeliest.
    Equal arguments give equal bytes.
    """
    random = np.random.default_rng(seed)
    tensors: list[tuple[str, npt.NDArray[np.float32]]] = []

    def matrix(name: str, n_columns: int, n_rows: int, std: float | None = None) -> None:
        values = random.standard_normal((n_rows, n_columns), dtype=np.float32)
        tensors.append((f"{name}.weight", values * np.float32(std if std is not None else n_columns**-0.5)))

    def norm(name: str) -> None:
        tensors.append((f"{name}.weight", random.uniform(0.8, 1.2, n_embd).astype(np.float32)))

    matrix("token_embd", n_embd, n_vocab, None if tied else 1.0)
    norm("output_norm")
    if not tied:
        matrix("output", n_embd, n_vocab)
    if not ends:
        tensors[-1][1][END_TOKEN] = 0
    if rope_factors:
        tensors.append(("rope_freqs.weight", np.linspace(1.0, 4.0, head_dim // 2, dtype=np.float32)))
    for layer in range(n_layers):
        at = f"blk.{layer}."
        norm(at + "attn_norm")
        matrix(at + "attn_q", n_embd, n_heads * head_dim)
        matrix(at + "attn_k", n_embd, n_kv_heads * head_dim)
        matrix(at + "attn_v", n_embd, n_kv_heads * head_dim)
        matrix(at + "attn_output", n_heads * head_dim, n_embd)
        norm(at + "ffn_norm")
        matrix(at + "ffn_gate", n_embd, n_ff)
        matrix(at + "ffn_up", n_embd, n_ff)
        matrix(at + "ffn_down", n_ff, n_embd)

    def add_metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_name(f"random {path.stem}")
        writer.add_context_length(context)
        writer.add_embedding_length(n_embd)
        writer.add_block_count(n_layers)
        writer.add_feed_forward_length(n_ff)
        writer.add_head_count(n_heads)
        writer.add_head_count_kv(n_kv_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(n_vocab)
        if rope_scaling is not None:
            writer.add_rope_scaling_type(gguf.RopeScalingType(rope_scaling[0]))
            writer.add_rope_scaling_factor(rope_scaling[1])
            writer.add_rope_scaling_orig_ctx_len(max(1, int(context / rope_scaling[1])))
        add_tokenizer(writer, n_vocab)

    return write_model(path, "llama", tensors, types, add_metadata, split)


def write_model(
    path: Path,
    architecture: str,
    tensors: list[tuple[str, npt.NDArray[np.float32]]],
    types: Types,
    add_metadata: Callable[[gguf.GGUFWriter], None],
    split: int | None = None,
) -> Path:
    """Writes the tensors in these types; vectors are F32 always. Returns the path to open."""
    n_files = split or 1
    paths = (
        [path]
        if split is None
        else [path.with_name(f"{path.stem}-{i + 1:05}-of-{n_files:05}.gguf") for i in range(n_files)]
    )
    for number, part in enumerate(paths):
        writer = gguf.GGUFWriter(str(part), architecture)
        if number == 0:
            add_metadata(writer)
        if split is not None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", n_files)
            writer.add_int32("split.tensors.count", len(tensors))
        for name, values in tensors[number * len(tensors) // n_files : (number + 1) * len(tensors) // n_files]:
            type_name = "F32" if values.ndim == 1 else _type_of(types, name)
            add_tensor(writer, name, quantize(values, type_name), type_name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths[0]


def _type_of(types: Types, name: str) -> str:
    if isinstance(types, str):
        return types
    if callable(types):
        return types(name)
    return types.get(name.removesuffix(".weight").split(".")[-1], types.get("*", "F16"))


def add_tensor(writer: gguf.GGUFWriter, name: str, rows: npt.NDArray[np.generic], type_name: str) -> None:
    """Adds a tensor with these bytes, of any type in our table: the package's may be shorter."""
    kind = TYPES_BY_NAME[type_name]
    gguf.constants.GGML_QUANT_SIZES.setdefault(kind.id, (kind.block_elements, kind.block_bytes))
    writer.add_tensor(name, rows, raw_dtype=kind.id)


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A SentencePiece vocabulary: three special tokens, all bytes, the letters, then numbered words."""
    specials = ["<unk>", "<s>", "</s>"]
    letters = ["▁", *map(chr, range(ord("a"), ord("z") + 1))]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(_N_BYTE_TOKENS)), *letters]
    tokens += [f"▁w{number}" for number in range(n_vocab - len(tokens))]
    kinds = [gguf.TokenType.UNKNOWN] + 2 * [gguf.TokenType.CONTROL] + _N_BYTE_TOKENS * [gguf.TokenType.BYTE]
    kinds += (len(tokens) - len(kinds)) * [gguf.TokenType.NORMAL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens[:n_vocab])
    writer.add_token_scores([-float(index) for index in range(n_vocab)])
    writer.add_token_types(kinds[:n_vocab])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END_TOKEN)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def quantize(values: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[np.generic]:
    """``values`` [n_rows, n_columns] (or [n_columns]) in the GGUF type; bytes, where the type is no numpy type."""
    if type_name in _BY_PACKAGE:
        result: npt.NDArray[np.generic] = quantize_in_python(values, gguf.GGMLQuantizationType[type_name])
        return result
    kind, (n_rows, n_columns) = TYPES_BY_NAME[type_name], values.shape
    lib = ggml().base
    lib.ggml_quantize_init(kind.id)
    source = np.ascontiguousarray(values)
    importance = np.random.default_rng(_SEED).uniform(0.5, 1.5, (n_columns,)).astype(np.float32)
    out = np.empty((n_rows, kind.row_bytes(n_columns)), np.uint8)
    written = lib.ggml_quantize_chunk(
        kind.id, source.ctypes.data, out.ctypes.data, 0, n_rows, n_columns, importance.ctypes.data
    )
    assert written == out.nbytes, f"{type_name}: ggml wrote {written} bytes instead of {out.nbytes}"
    return out


def dequantize(rows: npt.NDArray[np.generic], type_name: str, n_columns: int) -> npt.NDArray[np.float32]:
    """The values, [n_rows, n_columns], that the bytes of a matrix stand for."""
    values = np.empty((len(rows), n_columns), np.float32)
    for row, out in zip(rows, values, strict=True):
        to_float(TYPES_BY_NAME[type_name].id, row.tobytes(), out)
    return values
