"""A window that holds a whole rank in memory, cut straight from the GGUF file: the fake for tests of the runtime."""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.gguf.reader import Gguf
from tpi.weights.layout import PART_ALIGNMENT, Part, Piece
from tpi.weights.modelfiles import ModelFiles
from tpi.weights.shards.repacking import RepackingKernels, repacks

_Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MemoryPiece:
    """Satisfies ``runtime.protocols.HeldPiece``."""

    part_addresses: tuple[int, ...]


class MemoryWindow:
    """Satisfies ``runtime.protocols.PieceWindow``; remembers the order of holds in ``held``."""

    def __init__(
        self, gguf: Gguf, pieces: Sequence[Piece], repacker: RepackingKernels | None = None, is_resident: bool = False
    ) -> None:
        self._is_resident = is_resident
        self._arrays = [[_packed(_cut(gguf, part), part, repacker) for part in piece.parts] for piece in pieces]
        self.held: list[int] = []

    def try_resident(self) -> tuple[MemoryPiece, ...] | None:
        """Everything, unless it is to be held piece by piece, as if it were streamed."""
        if not self._is_resident:
            return None
        return tuple(MemoryPiece(tuple(array.ctypes.data for array in arrays)) for arrays in self._arrays)

    @contextmanager
    def hold(self, index: int, hints: Sequence[int] = ()) -> Iterator[MemoryPiece]:
        self.held.append(index)
        yield MemoryPiece(tuple(array.ctypes.data for array in self._arrays[index]))


def _packed(data: _Bytes, part: Part, repacker: RepackingKernels | None) -> _Bytes:
    if repacker is None or not repacks(repacker, part):
        return data
    out = _allocate(part.n_bytes)
    repacker.rearrange(part.type_id, part.n_columns, part.n_rows, data.data, out.data)
    return out


def _allocate(n_bytes: int) -> _Bytes:
    return np.frombuffer(mmap.mmap(-1, n_bytes + PART_ALIGNMENT), np.uint8)[:n_bytes]


def _cut(gguf: Gguf, part: Part) -> _Bytes:
    tensor = gguf.tensors[part.tensor]
    shape = tensor.n_rows, tensor.n_bytes // tensor.n_rows
    if tensor.recipe is None:
        whole: _Bytes = np.memmap(gguf.paths[tensor.file], np.uint8, "r", tensor.offset, shape)
    else:
        whole = np.empty(shape, np.uint8)
        with ModelFiles(gguf) as files:
            files.read_rows(tensor, 0, whole.data.cast("B"))
    row_bytes = tensor.type.row_bytes
    rows = np.concatenate([whole[rows.start : rows.stop] for rows in part.rows])
    memory = _allocate(part.n_bytes)
    cut = [rows[:, row_bytes(columns.start) : row_bytes(columns.stop)] for columns in part.columns]
    memory[:] = np.concatenate(cut, axis=1).reshape(-1)
    return memory
