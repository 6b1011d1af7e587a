"""Random weights in any GGUF type, made at the speed of copying: any byte range of any tensor, always the same bytes.

A few million normally distributed values are quantised once per type and spread; a tensor is that pool of blocks,
repeated from a place that its name gives. So a rank's slices can be made without the rest of the model, and equal what
would be cut from the whole file. One thread at a time.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bench.shapes import Shape, TensorShape, rope_divisors
from tpi.errors import ModelFileError
from tpi.gguf.types import TensorType
from tpi.model.spans import Span
from tpi.runtime.ggml.binding import ggml
from tpi.weights.patches import Patch

Bytes = npt.NDArray[np.uint8]

N_BLOCKS = 131_101
"""Blocks of a pool: a prime above the largest vocabulary, so that no two rows of a matrix are equal."""

_N_VALUES = 1 << 20
_ROW_VALUES = 4096
_MIN_BLOCK_VALUES = 32


class RandomWeights:
    """All weights of a model of ``shape``; satisfies ``tpi.weights.slices.SliceSource``."""

    def __init__(self, shape: Shape, tensors: Sequence[TensorShape], seed: int = 0) -> None:
        self._shape, self._seed = shape, seed
        self._tensors: Mapping[str, TensorShape] = {tensor.name: tensor for tensor in tensors}
        self._pools: dict[tuple[int, float], Bytes] = {}

    def read(self, patch: Patch, out: memoryview) -> None:
        """See ``SliceSource``.

        Raises:
            ModelFileError: the model has no such tensor.
        """
        tensor = self._tensors.get(patch.tensor)
        if tensor is None or tensor.type.id != patch.type_id:
            raise ModelFileError(f"{self._shape.name} has no {patch.tensor} of the type that is asked for")
        row_bytes, at = tensor.type.row_bytes(tensor.n_columns), 0
        if patch.row_bytes == row_bytes:
            self.fill(tensor, patch.rows.start * row_bytes, out)
            return
        runs = patch.runs_in((Span(0, tensor.n_columns),))
        for row in range(patch.rows.start, patch.rows.stop):
            for run in runs:
                self.fill(tensor, row * row_bytes + run.start, out[at : at + run.size])
                at += run.size

    def fill(self, tensor: TensorShape, offset: int, out: memoryview) -> None:
        """Fills ``out`` with the bytes of ``tensor`` from ``offset`` on."""
        pool, place = self._source(tensor)
        place = (place + offset) % len(pool)
        done = 0
        while done < len(out):
            count = min(len(out) - done, len(pool) - place)
            out[done : done + count] = pool[place : place + count]
            done, place = done + count, 0

    def runs(self, tensor: TensorShape) -> list[memoryview]:
        """The whole tensor as pieces of memory, one after the other; nothing is copied."""
        pool, place = self._source(tensor)
        left, result = tensor.n_bytes, []
        while left:
            count = min(left, len(pool) - place)
            result.append(pool[place : place + count])
            left, place = left - count, 0
        return result

    def _source(self, tensor: TensorShape) -> tuple[memoryview, int]:
        """The bytes that the tensor repeats, and where in them it starts."""
        if tensor.n_rows == 0:
            return self._vector(tensor).view(np.uint8).data, 0
        # Products of normalised rows with weights of this deviation have a variance of one.
        deviation = 1.0 if tensor.name == "token_embd.weight" else tensor.n_columns**-0.5
        key = tensor.type.id, deviation
        if key not in self._pools:
            self._pools[key] = make_pool(tensor.type, deviation, self._seed)
        pool = self._pools[key]
        start = zlib.crc32(f"{self._seed} {tensor.name}".encode()) % N_BLOCKS
        return pool.reshape(-1).data, start * (pool.nbytes // N_BLOCKS)

    def _vector(self, tensor: TensorShape) -> npt.NDArray[np.float32]:
        if tensor.name == "rope_freqs.weight":
            return np.array(rope_divisors(self._shape), np.float32)
        random = np.random.default_rng([self._seed, zlib.crc32(tensor.name.encode())])
        return random.uniform(0.8, 1.2, tensor.n_columns).astype(np.float32)


def make_pool(kind: TensorType, deviation: float, seed: int) -> Bytes:
    """``N_BLOCKS`` valid blocks of a type, uint8 [N_BLOCKS, bytes], of normally distributed values."""
    random = np.random.default_rng([seed, kind.id])
    values = random.standard_normal((_N_VALUES // _ROW_VALUES, _ROW_VALUES), np.float32) * np.float32(deviation)
    block_values = max(kind.block_elements, _MIN_BLOCK_VALUES)
    blocks = quantise(values, kind).reshape(-1, kind.row_bytes(block_values))
    return blocks[random.integers(0, len(blocks), N_BLOCKS)]


def quantise(values: npt.NDArray[np.float32], kind: TensorType) -> Bytes:
    """``values`` [n_rows, n_columns] as bytes of the type, uint8 [n_rows, bytes], by ggml's own quantiser."""
    lib = ggml().base
    n_rows, n_columns = values.shape
    source, out = np.ascontiguousarray(values), np.empty((n_rows, kind.row_bytes(n_columns)), np.uint8)
    importance = np.ones(n_columns, np.float32)
    needs_importance = lib.ggml_quantize_requires_imatrix(kind.id)
    lib.ggml_quantize_init(kind.id)
    written = lib.ggml_quantize_chunk(
        kind.id,
        source.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        n_columns,
        importance.ctypes.data if needs_importance else None,
    )
    assert written == out.nbytes, f"{kind.name}: ggml wrote {written} bytes instead of {out.nbytes}"
    return out
