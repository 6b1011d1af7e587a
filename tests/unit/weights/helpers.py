"""What tests of weights share: partitions of small models, and where each slice's bytes come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.models import Types, write_random_model
from tpi.gguf.reader import Gguf, read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import Partition, divide
from tpi.model.spec import ModelSpec
from tpi.weights.identity import model_digest
from tpi.weights.layout import Part, Piece, lay_out
from tpi.weights.patches import Patch
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard import Shard, open_shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import GgufSource

PIECE_BYTES = 40_000
"""Small pieces, so that small models have many."""


@dataclass(frozen=True)
class Model:
    """A model file and what is said of it."""

    gguf: Gguf
    spec: ModelSpec

    def partition(self, *weights: float) -> Partition:
        return divide(blocks_of(self.spec), weights)

    def pieces(self, partition: Partition, rank: int, piece_bytes: int = PIECE_BYTES) -> tuple[Piece, ...]:
        return lay_out(blocks_of(self.spec), partition, rank, piece_bytes)

    def header(self, partition: Partition, rank: int, piece_bytes: int = PIECE_BYTES) -> ShardHeader:
        return ShardHeader(self.spec, partition, rank, piece_bytes)

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, row by row."""
        tensor = self.gguf.tensors[name]
        with self.gguf.paths[tensor.file].open("rb") as file:
            file.seek(tensor.offset)
            return np.frombuffer(file.read(tensor.n_bytes), np.uint8).reshape(tensor.n_rows, -1)

    def part(self, part: Part) -> bytes:
        """The bytes that belong into the part."""
        whole, row_bytes = self.tensor(part.tensor), self.gguf.tensors[part.tensor].type.row_bytes
        rows = np.concatenate([whole[span.start : span.stop] for span in part.rows])
        cut = [rows[:, row_bytes(span.start) : row_bytes(span.stop)] for span in part.columns]
        return np.concatenate(cut, axis=1).tobytes()

    def piece(self, piece: Piece) -> bytes:
        """The bytes that belong into the piece."""
        data = bytearray(piece.n_bytes)
        for part in piece.parts:
            data[part.offset : part.offset + part.n_bytes] = self.part(part)
        return bytes(data)


def make_model(folder: Path, types: Types = "Q8_0", split: int | None = None, **dimensions: Any) -> Model:
    """A model in ``folder``, written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    return open_model(write_random_model(folder / "model.gguf", types=types, split=split, **dimensions))


def open_model(path: Path) -> Model:
    gguf = read_gguf(path)
    return Model(gguf, read_spec(gguf, model_digest(gguf)))


class FakeSource:
    """Serves slices of a model from memory, counts the bytes, and breaks off after ``limit_bytes``."""

    def __init__(self, model: Model, limit_bytes: int | None = None, error: Exception | None = None) -> None:
        self.n_bytes = 0
        self._model = model
        self._limit_bytes = limit_bytes
        self._error = error

    def read(self, patch: Patch, out: memoryview) -> None:
        part = Part("", patch.tensor, patch.type_id, (patch.rows,), patch.columns, 0)
        data = self._model.part(part)
        assert len(data) == len(out) == patch.n_bytes
        self.n_bytes += len(out)
        if self._limit_bytes is not None and self.n_bytes > self._limit_bytes:
            assert self._error is not None
            raise self._error
        out[:] = data


def cut_shard(model: Model, path: Path, weights: tuple[float, ...], rank: int) -> Shard:
    """The shard of ``rank`` when ranks share by ``weights``."""
    with GgufSource(model.gguf) as source:
        return write_shard(path, model.header(model.partition(*weights), rank), source).shard


def check_content(model: Model, shard: Shard) -> None:
    """Every piece of the file has the bytes of the model."""
    data = shard.path.read_bytes()
    for piece in shard.pieces:
        at = shard.file_offset(piece.index)
        assert data[at : at + piece.n_bytes] == model.piece(piece)


def flip(path: Path, at: int) -> None:
    """Changes one bit of the file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@contextmanager
def used(path: Path) -> Iterator[None]:
    """Somebody has the shard at ``path`` in use."""
    with ShardStore(path.parent) as store:
        assert store.hold(open_shard(path))
        yield
