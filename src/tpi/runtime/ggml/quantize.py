"""Models whose matrices ggml's quantiser makes smaller as their rows are read, a few at a time.

Blocks of a type do not depend on one another, so a slice that is cut between blocks has the bytes of the whole
tensor's. Holds some MB while it works, without the interpreter, in two threads where there are two cores. Any thread.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tpi.errors import ModelFileError, UsageError
from tpi.gguf.reader import Gguf, GgufTensor, ReadBytes
from tpi.gguf.types import F32, TensorType
from tpi.model.quantization import check_quant, quantized_type
from tpi.model.spans import Span, Spans, total_size
from tpi.runtime.ggml.binding import ggml

_Bytes = npt.NDArray[np.uint8]
_BATCH_VALUES = 1 << 16
"""Of a thread at a time: as floats 256 KB."""
_MAX_THREADS = 2
_VERSION = 1
"""Rises when the same model comes to other bytes."""


def quantized(gguf: Gguf, quant: str | None) -> Gguf:
    """The model with its matrices in the type ``quant`` (``model.quantization`` tells which), made as they are read;
    None or empty: as it is.

    Raises:
        UsageError: there is no such type, or nothing to be quantised.
    """
    if not quant:
        return gguf
    quant, tensors = check_quant(quant), dict(gguf.tensors)
    for name, tensor in gguf.tensors.items():
        kind = quantized_type(name, tensor.type, (tensor.n_columns, tensor.n_rows), quant, gguf.tensors)
        if kind != tensor.type:
            tensors[name] = replace(tensor, type=kind, recipe=QuantizedRows(tensor, kind))
    if tensors == gguf.tensors:
        raise UsageError(f"{gguf.paths[0]} has no matrices in F32, F16 or BF16 to be quantised: run it as it is")
    digest = hashlib.sha256(f"{gguf.header_digest} {quant} {_VERSION}".encode()).hexdigest()
    return replace(gguf, tensors=tensors, header_digest=digest, quant=quant)


@dataclass(frozen=True)
class QuantizedRows:
    """``source`` in the type ``kind``. Satisfies ``gguf.reader.Recipe``."""

    source: GgufTensor
    kind: TensorType

    def make(self, read: ReadBytes, start: int, stop: int) -> _Bytes:
        return self.make_columns(read, Span(start, stop), (Span(0, self.source.n_columns),))

    def make_columns(self, read: ReadBytes, rows: Span, columns: Spans) -> _Bytes:
        """Of rows the bytes of ``columns``, cut between blocks, one range after the other: uint8 [rows, bytes].

        Raises:
            ModelFileError: a file cannot be read, or a value is not finite.
        """
        out = np.empty((rows.size, self.kind.row_bytes(total_size(columns))), np.uint8)

        def work(part: Span) -> None:
            for batch in self._batches(part):
                values = self._values(read, batch, columns)
                _quantize(self.kind, values, out[batch.start - rows.start : batch.stop - rows.start])

        n_threads = min(_n_threads(), 1 + rows.size * self.source.n_columns // _BATCH_VALUES)
        ends = [rows.start + rows.size * number // n_threads for number in range(n_threads + 1)]
        parts = [Span(first, last) for first, last in pairwise(ends)]
        if n_threads == 1:
            work(parts[0])
        else:
            with ThreadPoolExecutor(n_threads, "tpi-quantise") as threads:
                list(threads.map(work, parts))
        return out

    def _batches(self, rows: Span) -> Iterator[Span]:
        step = max(1, _BATCH_VALUES // max(1, self.source.n_columns))
        for row in range(rows.start, rows.stop, step):
            yield Span(row, min(row + step, rows.stop))

    def _values(self, read: ReadBytes, rows: Span, columns: Spans) -> npt.NDArray[np.float32]:
        """f32 [rows, columns], contiguous."""
        source, kind = self.source, self.source.type
        row_bytes = kind.row_bytes(source.n_columns)
        if source.recipe is not None:
            data = source.recipe.make(read, rows.start, rows.stop)
        else:
            data = np.empty((rows.size, row_bytes), np.uint8)
            read(source.file, source.offset + rows.start * row_bytes, data.data.cast("B"))
        if columns != (Span(0, source.n_columns),):
            data = np.concatenate([data[:, kind.row_bytes(c.start) : kind.row_bytes(c.stop)] for c in columns], axis=1)
        values = np.empty((rows.size, total_size(columns)), np.float32)
        if kind is F32:
            values[:] = np.ascontiguousarray(data).view(np.float32)
        else:
            traits = ggml().base.ggml_get_type_traits(kind.id).contents
            traits.to_float(np.ascontiguousarray(data).ctypes.data, values.ctypes.data, values.size)
        if not np.isfinite(values).all():
            raise ModelFileError(
                f"{source.name} has values that are not finite in rows {rows.start} to {rows.stop - 1}: they cannot be "
                "quantised, fetch the model again"
            )
        return values


def _quantize(kind: TensorType, values: npt.NDArray[np.float32], out: _Bytes) -> None:
    n_rows, n_columns = values.shape
    assert out.flags.c_contiguous
    if values.size:
        source, target = values.ctypes.data, out.ctypes.data
        written = ggml().base.ggml_quantize_chunk(kind.id, source, target, 0, n_rows, n_columns, None)
        assert written == out.nbytes, f"ggml wrote {written} bytes of {kind.name} in place of {out.nbytes}"


def _n_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_THREADS, usable)
