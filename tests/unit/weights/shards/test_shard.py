"""The shard format: golden header, damage found and named, whatever is no shard refused."""

import os
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.weights.helpers import Model, cut_shard, flip, make_model
from tpi.errors import ChecksumError, ModelFileError, TpiError
from tpi.model.partition import Partition
from tpi.model.spans import Share, Span
from tpi.model.spec import ModelSpec, TensorSpec
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.orders import Order
from tpi.weights.shards.shard import find_damage, open_shard, verify
from tpi.weights.shards.shard_check import check_header
from tpi.weights.shards.shard_format import (
    MAGIC,
    SUM_RUN_BYTES,
    VERSION,
    ShardHeader,
    encode_start,
    layout_of,
    sum_runs,
)
from tpi.weights.slices import GgufSource


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), n_ff=1536)


GOLDEN_BODY = (
    b"\x87\xa4spec\x8b\xa8n_layers\x01\xa6n_embd\x02\xa7n_vocab\x03\xafn_context_train\x08\xa9embedding\x94\xa1n\0\x02\x01"
    b"\xacarchitecture\xa5llama\xa4name\xa1m\xa6digest\xa1d\xa7entries\x83\xa1a\x01\xa1b\xcb?\xe0\0\0\0\0\0\0"
    b"\xa1c\x91\xc3\xa7tensors\x81\xa1n\x94\xa1n\0\x02\x01\xa5quant\xa4Q4_0\xa9partition\x82\xa7n_ranks\x01"
    b"\xa6shares\x91\x91\x91\x91\x92\0\x03\xa4rank\0"
    b"\xabpiece_bytes\x07\xa9repacking\xa3cpu"
    b"\xa6orders\x91\x94\x02\x01\xc4\x02\1\0\xc4\x01\2\xa5marks\xc4\x02\1\0"
)


def test_golden_header() -> None:
    norm = TensorSpec("n", 0, 2, 1)
    spec = ModelSpec(
        n_layers=1,
        n_embd=2,
        n_vocab=3,
        n_context_train=8,
        embedding=norm,
        architecture="llama",
        name="m",
        digest="d",
        entries={"a": 1, "b": 0.5, "c": (True,)},
        tensors={"n": norm},
        quant="Q4_0",
    )
    partition = Partition(1, ((Share((Span(0, 3),)),),))
    header = ShardHeader(spec, partition, 0, 7, "cpu", (Order(2, 1, b"\1\0", b"\2"),), b"\1\0")
    data = encode_start(header, b"\1\2\3\4")
    assert len(data) == 4096
    start = b"TPISHARD\x05\0\0\0" + len(GOLDEN_BODY).to_bytes(4, "little") + b"\x04\0\0\0" + GOLDEN_BODY
    start += b"\1\2\3\4"
    assert data == (start + zlib.crc32(start).to_bytes(4, "little")).ljust(4096, b"\0")


@pytest.mark.parametrize("wrong", [Share(()), Share((Span(0, 1), Span(0, 1))), Share((Span(5, 5),))])
@pytest.mark.parametrize("rank", [0, 1])
def test_shares_that_do_not_make_a_model(model: Model, tmp_path: Path, wrong: Share, rank: int) -> None:
    shard = cut_shard(model, tmp_path / "s", (1, 1), 1)
    shares = [list(row) for row in shard.header.partition.shares]
    shares[1][rank] = wrong
    partition = Partition(2, tuple(tuple(row) for row in shares))
    header = msgspec.structs.replace(shard.header, partition=partition)
    with pytest.raises(ModelFileError, match="partition cannot be"):
        check_header(shard.path, header, len(shard.sums), shard.layout.data_bytes)


def test_a_flipped_byte_is_found_and_named(model: Model, tmp_path: Path) -> None:
    shard = cut_shard(model, tmp_path / "s", (1, 1), 1)
    verify(shard)
    piece = shard.pieces[4]
    part = piece.parts[-1]
    at = shard.file_offset(4) + part.offset + part.n_bytes // 2
    flip(shard.path, at)
    with pytest.raises(ChecksumError) as error:
        verify(open_shard(shard.path))
    assert f"piece 4 (block {piece.block}, " in str(error.value) and part.tensor in str(error.value)
    (damage,) = find_damage(shard)
    assert damage.piece == 4 and damage.start <= at < damage.stop
    assert f"{damage.start:,} to {damage.stop:,}" in str(error.value)
    assert "\n" not in str(error.value)


def test_damage_is_placed_within_a_large_piece(tmp_path: Path) -> None:
    model = make_model(tmp_path, "F32", n_ff=1536)
    pieces = model.pieces(model.partition(1), 0, 16_000_000)
    with GgufSource(model.gguf) as source:
        header = model.header(model.partition(1), 0, 16_000_000)
        shard = write_shard(tmp_path / "s", header, source).shard
    for piece in (1, 3):
        flip(shard.path, shard.file_offset(piece) + 2 * SUM_RUN_BYTES + 5)
    seen: list[tuple[int, int]] = []
    damages = list(find_damage(shard, lambda done, total: seen.append((done, total))))
    assert [(d.piece, d.start - shard.file_offset(d.piece)) for d in damages] == [
        (1, 2 * SUM_RUN_BYTES),
        (3, 2 * SUM_RUN_BYTES),
    ]
    assert damages[0].tensors == ("blk.0.ffn_gate.weight",)
    assert seen[-1][0] == seen[-1][1] == sum(piece.n_bytes for piece in pieces)
    with pytest.raises(ChecksumError, match="and 1 more places"):
        verify(shard)


def test_what_is_no_shard_is_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(ModelFileError, match="cannot read"):
        open_shard(path)
    good = cut_shard(model, path, (1, 1), 0).path.read_bytes()
    cases = {
        b"": "not a shard",
        b"TPIS": "not a shard",
        b"GGUF" + good[4:]: "not a shard",
        good[:8] + b"\x01" + good[9:]: "version 1, this program reads 5",
        good[:12] + bytes(4) + b"\xff\xff\xff\xff" + good[20:]: "header of 4,294,967,295 bytes",
        good[:100]: "truncated",
        good[:200] + b"\0" + good[201:]: "differs from its checksum",
        good[:-4096]: "truncated",
        good[:-1]: "truncated",
        good + bytes(4096): "damaged",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=message) as error:
            open_shard(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


Tree = Any


def leaves(tree: Tree, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all numbers, texts and containers inside decoded msgpack."""
    found = [at] if at else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += leaves(value, (*at, key))
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_header_gives_an_error_of_ours(model: Model, tmp_path: Path, data: st.DataObject) -> None:
    """Any one value of the header is replaced, with a right checksum: an error, or a shard that is still sound."""
    path = tmp_path / "hostile"
    original = model.header(model.partition(2, 1), 1)
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(original))
    *way, last = data.draw(st.sampled_from(leaves(tree)))
    node = tree
    for key in way:
        node = node[key]
    numbers = st.one_of(st.integers(-3, 3), st.sampled_from((2**31, 2**40, 2**63 - 1, 2**64 - 1, -(2**63))))
    near = st.integers(-300, 300).map(lambda n: node[last] + n) if isinstance(node[last], int) else st.nothing()
    strange: st.SearchStrategy[Any] = st.sampled_from((None, "", "x", [], {}, b"", float("nan"), 1e300, [[0, 1]], True))
    node[last] = data.draw(st.one_of(near, numbers, strange))
    body = msgspec.msgpack.encode(tree)
    sums = bytes(layout_of(original).n_sum_bytes)
    lengths = b"".join(number.to_bytes(4, "little") for number in (VERSION, len(body), len(sums)))
    start = MAGIC + lengths + body + sums
    start += zlib.crc32(start).to_bytes(4, "little")
    size = -(-len(start) // 4096) * 4096
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size + layout_of(original).data_bytes)
    try:
        shard = open_shard(path)
    except TpiError as error:
        assert "\n" not in str(error)
        return
    last = shard.pieces[-1]
    assert shard.file_offset(last.index) + last.n_bytes <= path.stat().st_size, "what is read later lies in the file"


def test_sums_are_crc32_of_runs() -> None:
    data = os.urandom(SUM_RUN_BYTES + 3)
    expected = [zlib.crc32(data[:SUM_RUN_BYTES]), zlib.crc32(data[SUM_RUN_BYTES:])]
    assert sum_runs(memoryview(data)) == b"".join(value.to_bytes(4, "little") for value in expected)
