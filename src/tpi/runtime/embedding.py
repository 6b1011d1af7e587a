"""The embedding table, and another where a model looks up more for every token: never resident, rows are read straight
from the model's files and made float32. Master only.

Owns the model's open files. One thread.
"""

from collections.abc import Sequence

import numpy as np

from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf
from tpi.model.architectures import inputs_of
from tpi.model.spec import ModelSpec, TensorSpec
from tpi.runtime.ggml.dequantize import to_float
from tpi.runtime.protocols import Float32Array
from tpi.weights.modelfiles import ModelFiles


class EmbeddingTable:
    """Reads embeddings by token. A context manager; ``close`` is idempotent."""

    def __init__(self, gguf: Gguf, spec: ModelSpec) -> None:
        inputs = inputs_of(spec)
        self._files = ModelFiles(gguf)
        self._tables: list[_Table] = [_Table(gguf, self._files, spec.embedding, inputs.embedding_scale)]
        if inputs.looked_up is not None:
            self._tables.append(_Table(gguf, self._files, inputs.looked_up, inputs.looked_up_scale))

    def __enter__(self) -> "EmbeddingTable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()

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

    def __init__(self, gguf: Gguf, files: ModelFiles, tensor: TensorSpec, scale: float) -> None:
        self._tensor, self._files, self._scale = gguf.tensors[tensor.name], files, np.float32(scale)
        self._path = gguf.paths[self._tensor.file]
        self._row_bytes = self._tensor.type.row_bytes(self._tensor.n_columns)

    @property
    def width(self) -> int:
        return self._tensor.n_columns

    def read(self, tokens: Sequence[int], out: Float32Array) -> None:
        row, values = bytearray(self._row_bytes), np.empty(self.width, np.float32)
        for index, token in enumerate(tokens):
            if not 0 <= token < self._tensor.n_rows:
                raise ModelFileError(
                    f"{self._path} has embeddings for tokens 0 to {self._tensor.n_rows - 1}, its tokenizer gives "
                    f"{token}: the file is damaged, fetch it again"
                )
            self._files.read_rows(self._tensor, token, memoryview(row))
            to_float(self._tensor.type.id, bytes(row), values)
            out[index] = values if self._scale == 1 else values * self._scale
