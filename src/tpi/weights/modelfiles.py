"""The open files of a model, and whole rows of its tensors, which lie there or are made. One thread at a time."""

import os
from types import TracebackType
from typing import Self

import numpy as np

from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf, GgufTensor
from tpi.weights.files import open_for_reading, read_exactly

_BUFFER_BYTES = 2_000_000
"""Of rows that are made at a time: values on their way take several times as much."""


class ModelFiles:
    """Opens all files of ``gguf``. A context manager; ``close`` is idempotent.

    Raises:
        ModelFileError: a file cannot be opened.
    """

    def __init__(self, gguf: Gguf) -> None:
        self._paths = gguf.paths
        self._descriptors: list[int] = []
        try:
            for path in gguf.paths:
                self._descriptors.append(open_for_reading(path))
        except ModelFileError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; may be called again."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def descriptor(self, file: int) -> int:
        """Of file number ``file``; stays this object's."""
        return self._descriptors[file]

    def read(self, file: int, offset: int, out: memoryview) -> None:
        """Fills ``out`` with bytes of file number ``file``, blocking.

        Raises:
            ModelFileError: the file ends before, or cannot be read.
        """
        read_exactly(self._descriptors[file], self._paths[file], offset, out)

    def read_rows(self, tensor: GgufTensor, row: int, out: memoryview) -> None:
        """Fills ``out`` with whole rows from ``row`` on, blocking; those that are made 2 MB at a time.

        Raises:
            ModelFileError: as :meth:`read`.
        """
        row_bytes = tensor.type.row_bytes(tensor.n_columns)
        if tensor.recipe is None:
            self.read(tensor.file, tensor.offset + row * row_bytes, out)
            return
        n_rows, step = len(out) // max(1, row_bytes), max(1, _BUFFER_BYTES // max(1, row_bytes))
        whole = np.frombuffer(out, np.uint8).reshape(n_rows, row_bytes)
        for first in range(0, n_rows, step):
            stop = min(first + step, n_rows)
            whole[first:stop] = tensor.recipe.make(self.read, row + first, row + stop)
