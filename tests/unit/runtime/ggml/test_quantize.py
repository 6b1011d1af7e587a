"""Slices that are quantised as they are cut have the bytes that llama.cpp's quantiser makes of whole tensors."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from tests.models import write_random_model
from tests.unit.weights.helpers import open_model
from tpi.errors import ModelFileError, UsageError
from tpi.gguf.reader import Gguf, read_gguf
from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide
from tpi.model.quantization import QUANTS
from tpi.model.spans import Span
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.ggml import quantize
from tpi.runtime.ggml.quantize import quantized
from tpi.weights.identity import model_digest
from tpi.weights.layout import lay_out
from tpi.weights.modelfiles import ModelFiles
from tpi.weights.patches import placed_patches
from tpi.weights.slices import GgufSource
from tpi.weights.stored import lies_in_gguf
from tpi.weights.strips import Strips

_FTYPES = {"Q4_0": 2, "Q5_0": 8, "Q8_0": 7, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}
_MIXTURES = ("Q4_K", "Q5_K")
"""Made by llama.cpp of several types, unless it is told not to."""
SHAPE: dict[str, Any] = {"n_embd": 512, "n_heads": 8, "n_kv_heads": 4, "n_ff": 5 * 256, "n_layers": 1}


@dataclass(frozen=True)
class _Pair:
    """A model that is quantised as it is read, and llama.cpp's copy."""

    ours: Gguf
    theirs: Gguf


def _pair(folder: Path, quant: str, **shape: Any) -> _Pair:
    path = write_random_model(folder / "source.gguf", **{**SHAPE, **shape})
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = _FTYPES[quant], 2, quant in _MIXTURES
    if quant in _MIXTURES:
        params.output_tensor_type = TYPES_BY_NAME["Q6_K"].id
    copy = folder / "copy.gguf"
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(copy).encode(), ctypes.byref(params)) == 0
    return _Pair(quantized(read_gguf(path), quant), read_gguf(copy))


def _check_whole(pair: _Pair) -> None:
    assert {n: t.type.name for n, t in pair.ours.tensors.items()} == {
        n: t.type.name for n, t in pair.theirs.tensors.items()
    }
    with ModelFiles(pair.ours) as ours, ModelFiles(pair.theirs) as theirs:
        for name, tensor in pair.ours.tensors.items():
            made, found = bytearray(tensor.n_bytes), bytearray(tensor.n_bytes)
            ours.read_rows(tensor, 0, memoryview(made))
            theirs.read_rows(pair.theirs.tensors[name], 0, memoryview(found))
            assert made == found, name


@pytest.mark.parametrize("number, quant", list(enumerate(QUANTS)))
def test_slices_are_those_of_the_whole(tmp_path: Path, number: int, quant: str) -> None:
    pair = _pair(tmp_path, quant, types=("F16", "BF16", "F32")[number % 3])
    _check_whole(pair)
    blocks = blocks_of(read_spec(pair.ours, ""))
    assert blocks == blocks_of(read_spec(pair.theirs, "")), "units are those of the types that come out"
    partition, shared = divide(blocks, (3, 1, 1)), Strips()
    shared.expect(blocks, partition)
    for rank in range(3):
        strips = shared.reader(lambda rank=rank: rank) if rank else None  # type: ignore[misc]
        with GgufSource(pair.ours, strips) as ours, GgufSource(pair.theirs) as theirs:
            pieces = lay_out(blocks, partition, rank)
            assert not lies_in_gguf(pair.ours, pieces)
            for placed in (p for piece in pieces for part in piece.parts for p in placed_patches(part)):
                made, found = bytearray(placed.patch.n_bytes), bytearray(placed.patch.n_bytes)
                ours.read(placed.patch, memoryview(made))
                theirs.read(placed.patch, memoryview(found))
                assert made == found, placed.patch
        shared.leave(rank)


@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0", "Q6_K"])
def test_embeddings_that_are_the_head_have_its_type(tmp_path: Path, quant: str) -> None:
    pair = _pair(tmp_path, quant, tied=True)
    _check_whole(pair)
    spec = read_spec(pair.ours, "")
    with EmbeddingTable(pair.ours, spec) as ours, EmbeddingTable(pair.theirs, read_spec(pair.theirs, "")) as theirs:
        assert np.array_equal(ours.rows([3, 300]), theirs.rows([3, 300]))


@pytest.mark.parametrize("quant", ["Q4_K", "Q6_K"])
def test_rows_that_are_not_whole_blocks_get_smaller_ones(tmp_path: Path, quant: str) -> None:
    """Rows of 288 are blocks of 32, those of 512 of 256, too."""
    path = write_random_model(tmp_path / "source.gguf", **{**SHAPE, "n_embd": 288, "n_layers": 1})
    types = {name: tensor.type.name for name, tensor in quantized(read_gguf(path), quant).tensors.items()}
    small = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[quant]
    assert types["blk.0.attn_q.weight"] == small and types["blk.0.attn_output.weight"] == quant
    assert types["output.weight"] == "Q8_0" and types["output_norm.weight"] == "F32"


def test_what_is_quantised_already_stays(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", **SHAPE, types={"*": "F16", "ffn_down": "Q4_0"})
    model = quantized(read_gguf(path), "q8_0")
    assert model.tensors["blk.0.ffn_down.weight"] == read_gguf(path).tensors["blk.0.ffn_down.weight"]
    assert model.tensors["blk.0.ffn_up.weight"].type.name == "Q8_0" and model.quant == "Q8_0"
    with pytest.raises(UsageError, match="Q4_1"):
        quantized(read_gguf(path), "Q4_1")
    every = write_random_model(tmp_path / "every.gguf", types="Q8_0", tied=True)
    with pytest.raises(UsageError, match="no matrices in F32, F16 or BF16"):
        quantized(read_gguf(every), "Q4_0")


def test_the_identity_tells_what_a_model_is_quantised_to(tmp_path: Path) -> None:
    plain = open_model(write_random_model(tmp_path / "model.gguf", **SHAPE)).gguf
    digests = [model_digest(quantized(plain, quant)) for quant in (None, *QUANTS)]
    assert len(set(digests)) == len(digests)
    assert digests[1] == model_digest(quantized(plain, QUANTS[0])) and digests[0] == model_digest(plain)


def test_rows_are_made_alike_however_many_threads_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(read_gguf(write_random_model(tmp_path / "model.gguf", **SHAPE)), "Q4_K")
    tensor = model.tensors["blk.0.ffn_down.weight"]
    recipe = tensor.recipe
    assert isinstance(recipe, quantize.QuantizedRows)
    monkeypatch.setattr(quantize, "_BATCH_VALUES", 1 << 13)
    with ModelFiles(model) as files:
        whole = recipe.make(files.read, 0, tensor.n_rows)
        alone = np.concatenate([recipe.make(files.read, row, row + 1) for row in range(tensor.n_rows)])
        columns = recipe.make_columns(files.read, Span(7, 300), (Span(0, 256), Span(768, 1024)))
    block = TYPES_BY_NAME["Q4_K"].block_bytes
    assert np.array_equal(whole, alone)
    assert np.array_equal(columns, np.delete(whole[7:300], np.s_[block : 3 * block], axis=1)[:, : 2 * block])


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, quant: str, value: float) -> None:
    path = write_random_model(tmp_path / "model.gguf", **SHAPE, types="F32")
    tensor = read_gguf(path).tensors["blk.0.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset + 4 * tensor.n_columns * 9)
        file.write(np.float32(value).tobytes())
    model = quantized(read_gguf(path), quant)
    made = model.tensors[tensor.name]
    with ModelFiles(model) as files, pytest.raises(ModelFileError, match=r"ffn_up.* has values that are not finite"):
        files.read_rows(made, 0, memoryview(bytearray(made.n_bytes)))
