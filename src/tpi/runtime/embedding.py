"""The embedding table, and another where a model looks up more for every token: never resident, rows are read straight
from the GGUF file and made float32. Master only.

Owns their file descriptors. One thread.
"""

import os
from collections.abc import Sequence

import numpy as np

from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf
from tpi.model.architectures import inputs_of
from tpi.model.spec import ModelSpec, TensorSpec
from tpi.runtime.ggml.dequantize import to_float
from tpi.runtime.protocols import Float32Array
from tpi.weights.files import open_for_reading, read_exactly


class EmbeddingTable:
    """Reads embeddings by token. A context manager; ``close`` is idempotent."""

    def __init__(self, gguf: Gguf, spec: ModelSpec) -> None:
        inputs = inputs_of(spec)
        self._tables: list[_Table] = [_Table(gguf, spec.embedding, inputs.embedding_scale)]
        if inputs.looked_up is not None:
            self._tables.append(_Table(gguf, inputs.looked_up, inputs.looked_up_scale))

    def __enter__(self) -> "EmbeddingTable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for table in self._tables:
            table.close()

    def rows(self, tokens: Sequence[int]) -> Float32Array:
        """The embeddings of ``tokens``, and what is looked up beside them, f32 [n_tokens, n_embd and that]. Blocks on
        the disk.

        Raises:
            ModelFileError: a table has no such token, or the file is shorter than it was or cannot be read.
        """
        result = np.empty((len(tokens), sum(table.width for table in self._tables)), dtype=np.float32)
        first = 0
        for table in self._tables:
            table.read(tokens, result[:, first : first + table.width])
            first += table.width
        return result


class _Table:
    """One tensor's rows, times ``scale``."""

    def __init__(self, gguf: Gguf, tensor: TensorSpec, scale: float) -> None:
        self._tensor, self._scale = gguf.tensors[tensor.name], np.float32(scale)
        self._path = gguf.paths[self._tensor.file]
        self._row_bytes = self._tensor.type.row_bytes(self._tensor.n_columns)
        self._descriptor: int | None = open_for_reading(self._path)

    @property
    def width(self) -> int:
        return self._tensor.n_columns

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, tokens: Sequence[int], out: Float32Array) -> None:
        assert self._descriptor is not None
        row, values = bytearray(self._row_bytes), np.empty(self.width, np.float32)
        for index, token in enumerate(tokens):
            if not 0 <= token < self._tensor.n_rows:
                raise ModelFileError(
                    f"{self._path} has embeddings for tokens 0 to {self._tensor.n_rows - 1}, its tokenizer gives "
                    f"{token}: the file is damaged, fetch it again"
                )
            offset = self._tensor.offset + token * self._row_bytes
            read_exactly(self._descriptor, self._path, offset, memoryview(row))
            to_float(self._tensor.type.id, bytes(row), values)
            out[index] = values if self._scale == 1 else values * self._scale
