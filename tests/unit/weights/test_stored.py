"""Pieces are read with the same bytes from shards and straight from GGUF files, directly and through the page cache."""

import errno
import mmap
import os
from pathlib import Path

import pytest

from tests.unit.weights.helpers import Model, make_model
from tpi.errors import ModelFileError
from tpi.weights.files import PAGE_BYTES, read_some
from tpi.weights.layout import Piece
from tpi.weights.shards.assemble import write_shard
from tpi.weights.slices import GgufSource
from tpi.weights.stored import StoredWeights, lies_in_gguf, stored_from_gguf, stored_from_shard
from tpi.weights.streaming import disk
from tpi.weights.streaming.disk import PieceReader, ReadWay


@pytest.fixture(params=(None, 3), ids=("single", "split"))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    types = {"*": "Q4_0", "attn_v": "Q6_K", "ffn_down": "Q5_1", "output": "F16"}
    return make_model(tmp_path, types, request.param, rope_factors=True)


def check_reading(
    model: Model, stored: StoredWeights, pieces: tuple[Piece, ...], direct: bool, way: ReadWay | None = None
) -> None:
    assert len(stored.pieces) == len(pieces)
    with PieceReader(stored, way, direct=direct) as reader, mmap.mmap(-1, stored.arena_bytes) as arena:
        assert reader.is_direct == direct, "the file system of the tests can do both"
        for piece, place in zip(pieces, stored.pieces, strict=True):
            assert place.index == piece.index and place.arena_bytes % PAGE_BYTES == 0
            with memoryview(arena)[: place.arena_bytes] as memory:
                reader.read(place, memory)
                for part, at in zip(piece.parts, place.part_offsets, strict=True):
                    assert bytes(memory[at : at + part.n_bytes]) == model.part(part)


@pytest.mark.parametrize("direct", (False, True))
@pytest.mark.parametrize("piece_bytes", (3_000, 40_000, 16_000_000))
def test_straight_from_the_model(model: Model, direct: bool, piece_bytes: int) -> None:
    pieces = model.pieces(model.partition(1), 0, piece_bytes)
    assert lies_in_gguf(model.gguf, pieces)
    stored = stored_from_gguf(model.gguf, pieces)
    for piece in stored.pieces:
        for extent in piece.extents:
            assert extent.file_offset % PAGE_BYTES == extent.arena_offset % PAGE_BYTES == 0
    waste = stored.arena_bytes - sum(piece.n_bytes for piece in pieces)
    assert waste <= sum(2 * PAGE_BYTES * len(piece.extents) for piece in stored.pieces)
    check_reading(model, stored, pieces, direct)


@pytest.mark.parametrize("direct", (False, True))
def test_from_a_shard(model: Model, tmp_path: Path, direct: bool) -> None:
    header = model.header(model.partition(1, 2), 1)
    with GgufSource(model.gguf) as source:
        shard = write_shard(tmp_path / "s", header, source).shard
    check_reading(model, stored_from_shard(shard), shard.pieces, direct)


def test_column_cuts_need_a_shard(model: Model) -> None:
    assert not lies_in_gguf(model.gguf, model.pieces(model.partition(1, 1), 0))


@pytest.mark.parametrize("n_readers", (1, 4))
def test_large_pieces_are_read_in_chunks(model: Model, n_readers: int) -> None:
    pieces = model.pieces(model.partition(1), 0)
    check_reading(model, stored_from_gguf(model.gguf, pieces), pieces, True, ReadWay(2 * PAGE_BYTES, n_readers))


def test_a_file_system_without_direct_reads(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    stored = stored_from_gguf(model.gguf, model.pieces(model.partition(1), 0))
    with PieceReader(stored) as reader:
        assert not reader.is_direct


def test_short_reads_go_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(descriptor: int, offset: int, out: memoryview) -> int:
        return read_some(descriptor, offset, out[:PAGE_BYTES])

    monkeypatch.setattr(disk, "read_some", some)
    pieces = model.pieces(model.partition(1), 0)
    check_reading(model, stored_from_gguf(model.gguf, pieces), pieces, True)


@pytest.mark.parametrize("most", (512, PAGE_BYTES + 1000))
def test_short_direct_reads_that_end_within_a_page_go_on(
    model: Model, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    def some(descriptor: int, offset: int, out: memoryview) -> int:
        n_read = min(most, read_some(descriptor, offset, out))
        out[n_read:] = bytes(len(out) - n_read)
        return n_read

    monkeypatch.setattr(disk, "read_some", some)
    pieces = model.pieces(model.partition(1), 0)
    check_reading(model, stored_from_gguf(model.gguf, pieces), pieces, True)


def test_a_file_that_comes_to_end_within_a_page_is_truncated(model: Model) -> None:
    stored = stored_from_gguf(model.gguf, model.pieces(model.partition(1), 0))
    piece = stored.pieces[0]
    path, end = stored.paths[piece.extents[0].file], piece.extents[0].file_offset + PAGE_BYTES + 1000
    with PieceReader(stored) as reader, mmap.mmap(-1, stored.arena_bytes) as arena, memoryview(arena) as memory:
        assert reader.is_direct
        os.truncate(path, end)
        with pytest.raises(ModelFileError, match=rf"is truncated: it ends at byte {end:,} but"):
            reader.read(piece, memory)


def test_a_disk_error_names_file_and_place(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, offset: int, out: memoryview) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "read_some", fail)
    stored = stored_from_gguf(model.gguf, model.pieces(model.partition(1), 0))
    extent = stored.pieces[0].extents[0]
    with (
        PieceReader(stored) as reader,
        mmap.mmap(-1, stored.arena_bytes) as arena,
        memoryview(arena) as memory,
        pytest.raises(ModelFileError) as error,
    ):
        reader.read(stored.pieces[0], memory)
    assert str(stored.paths[extent.file]) in str(error.value)
    assert "at byte " in str(error.value) and "Input/output error" in str(error.value)


def test_a_truncated_file_is_refused_at_once(model: Model) -> None:
    stored = stored_from_gguf(model.gguf, model.pieces(model.partition(1), 0))
    path = stored.paths[-1]
    os.truncate(path, path.stat().st_size - 5_000)
    with pytest.raises(ModelFileError, match="is truncated"):
        PieceReader(stored)
    path.unlink()
    with pytest.raises(ModelFileError, match="cannot read"):
        PieceReader(stored)
