"""The embedding table, never resident: rows are read straight from the GGUF file and made float32. Master only.

Owns one file descriptor. One thread.
"""

import os
from collections.abc import Sequence

import numpy as np

from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf
from tpi.model.spec import ModelSpec
from tpi.runtime.ggml.dequantize import to_float
from tpi.runtime.protocols import Float32Array
from tpi.weights.files import open_for_reading, read_exactly


class EmbeddingTable:
    """Reads embeddings by token. A context manager; ``close`` is idempotent."""

    def __init__(self, gguf: Gguf, spec: ModelSpec) -> None:
        self._tensor = gguf.tensors[spec.embedding.name]
        self._path = gguf.paths[self._tensor.file]
        self._row_bytes = self._tensor.type.row_bytes(self._tensor.n_columns)
        self._descriptor: int | None = open_for_reading(self._path)

    def __enter__(self) -> "EmbeddingTable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def rows(self, tokens: Sequence[int]) -> Float32Array:
        """The embeddings of ``tokens``, f32 [n_tokens, n_embd]. Blocks on the disk.

        Raises:
            ModelFileError: the table has no such token, or the file is shorter than it was or cannot be read.
        """
        assert self._descriptor is not None
        result = np.empty((len(tokens), self._tensor.n_columns), dtype=np.float32)
        row = bytearray(self._row_bytes)
        for index, token in enumerate(tokens):
            if not 0 <= token < self._tensor.n_rows:
                raise ModelFileError(
                    f"{self._path} has embeddings for tokens 0 to {self._tensor.n_rows - 1}, its tokenizer gives "
                    f"{token}: the file is damaged, fetch it again"
                )
            offset = self._tensor.offset + token * self._row_bytes
            read_exactly(self._descriptor, self._path, offset, memoryview(row))
            to_float(self._tensor.type.id, bytes(row), result[index])
        return result
