"""The order that kernels give to weights is found out, or it is known that it is not; shards are made from others."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.weights.helpers import PIECE_BYTES, FakeSource, Model, check_content, flip, make_model
from tpi.errors import KernelError, ModelFileError
from tpi.gguf.types import TYPES_BY_ID, TYPES_BY_NAME
from tpi.model.spans import Span
from tpi.runtime.ggml.repack import Repacker
from tpi.weights.layout import Part
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.orders import UNKNOWN, Orders, Restorer
from tpi.weights.shards.repacking import RepackingKernels, repacked_header, repacks
from tpi.weights.shards.shard import Shard, open_shard, verify
from tpi.weights.shards.shard_check import check_header
from tpi.weights.shards.shard_source import ShardSource

Bytes = npt.NDArray[np.uint8]
WEIGHTS, OTHER_WEIGHTS = (1.0, 1.0), (3.0, 2.0)


class Kernels:
    """Interleave ``n_rows`` rows of any type byte by byte; ``how`` says what else they do."""

    name = "made up"

    def __init__(self, n_rows: int, how: str = "") -> None:
        self.n_rows, self._how = n_rows, how

    def takes(self, type_id: int, n_columns: int, n_rows: int) -> bool:
        return n_rows % self.n_rows == 0

    def rearrange(self, type_id: int, n_columns: int, n_rows: int, source: memoryview, out: memoryview) -> None:
        size = TYPES_BY_ID[type_id].block_bytes
        rows = np.frombuffer(source, np.uint8).reshape(n_rows // self.n_rows, self.n_rows, -1, size)
        cells = rows.transpose(0, 2, 3, 1).reshape(-1, self.n_rows * size)
        if self._how == "changed and torn":
            cells = np.packbits(np.roll(np.unpackbits(cells ^ np.uint8(0x88), axis=1), 3, axis=1), axis=1)
        elif self._how == "sums":
            cells = np.cumsum(cells, axis=1, dtype=np.uint8)
        elif self._how == "far away":
            cells = cells[::-1]
        np.frombuffer(out, np.uint8)[:] = cells.reshape(-1)


def part_of(type_name: str, n_rows: int, n_columns: int) -> Part:
    return Part("", "t", TYPES_BY_NAME[type_name].id, (Span(0, n_rows),), (Span(0, n_columns),), 0)


def rearranged(repacker: RepackingKernels, part: Part) -> tuple[Bytes, Bytes]:
    """Random rows, and what the kernels make of them."""
    rows = np.random.default_rng(3).integers(0, 256, (part.n_rows, part.row_bytes), np.uint8)
    out = np.empty_like(rows)
    repacker.rearrange(part.type_id, part.n_columns, part.n_rows, rows.reshape(-1).data, out.reshape(-1).data)
    return rows, out


@pytest.mark.parametrize("how", ["", "changed and torn"])
@pytest.mark.parametrize("n_rows", [1, 2, 8, 32])
@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "F16"])
def test_orders_are_found(kind: str, n_rows: int, how: str) -> None:
    kernels, part = Kernels(n_rows, how), part_of(kind, 64, 512)
    orders = Orders(kernels)
    assert orders.mark_of(part) == orders.mark_of(part_of(kind, 192, 1024)) == len(orders.found) == 1
    rows, out = rearranged(kernels, part)
    assert (orders.found[0].is_possible and not np.array_equal(rows, out)) or (n_rows, how) == (1, "")
    assert np.array_equal(Restorer(orders.found[0]).restore(out), rows)


@pytest.mark.parametrize(("n_rows", "how"), [(8, "sums"), (8, "far away"), (64, "")])
def test_what_is_no_order_of_bits_in_cells_is_unknown(n_rows: int, how: str) -> None:
    orders = Orders(Kernels(n_rows, how))
    assert orders.mark_of(part_of("Q4_0", 64, 512)) == UNKNOWN and not orders.found


@pytest.fixture
def these_kernels() -> Iterator[Repacker]:
    try:
        repacker = Repacker()
    except KernelError as error:
        pytest.skip(str(error))
    with repacker:
        yield repacker


@pytest.mark.parametrize("kind", TYPES_BY_NAME)
def test_the_orders_of_these_kernels_are_found(these_kernels: Repacker, kind: str) -> None:
    part = part_of(kind, 192, 1024)
    if not repacks(these_kernels, part):
        pytest.skip(f"no kernels for rearranged {kind} on this CPU")
    orders = Orders(these_kernels)
    assert orders.mark_of(part) == 1
    rows, out = rearranged(these_kernels, part)
    assert np.array_equal(Restorer(orders.found[0]).restore(out), rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    types = {"*": "Q4_0", "attn_v": "Q8_0", "ffn_down": "Q4_K"}
    return make_model(tmp_path_factory.mktemp("model"), types, n_embd=512, n_heads=8, n_ff=1536)


def write(
    model: Model, path: Path, weights: tuple[float, ...], repacker: RepackingKernels | None, older: Shard | None = None
) -> tuple[Shard, int]:
    """The shard of rank 0, and the bytes that were fetched for it."""
    partition, source = model.partition(*weights), FakeSource(model)
    header = model.header(partition, 0)
    if repacker is not None:
        header = repacked_header(header, model.pieces(partition, 0, PIECE_BYTES), repacker)
    if older is None:
        return write_shard(path, header, source, repacker=repacker).shard, source.n_bytes
    with ShardSource(older) as reuse:
        return write_shard(path, header, source, [reuse], repacker=repacker).shard, source.n_bytes


@pytest.fixture(params=["these", "made up"])
def repacker(request: pytest.FixtureRequest) -> RepackingKernels:
    return request.getfixturevalue("these_kernels") if request.param == "these" else Kernels(8, "changed and torn")


def test_shards_are_made_from_rearranged_ones(model: Model, tmp_path: Path, repacker: RepackingKernels) -> None:
    """As many bytes are fetched as where nothing is rearranged, whatever becomes what."""
    plain, _ = write(model, tmp_path / "plain", WEIGHTS, None)
    expected, n_fetched = write(model, tmp_path / "expected", OTHER_WEIGHTS, None, plain)
    repacked, _ = write(model, tmp_path / "repacked", WEIGHTS, repacker)
    assert repacked.header.repacking == repacker.name and any(repacked.header.marks)
    assert repacked.path.read_bytes()[repacked.data_start :] != plain.path.read_bytes()[plain.data_start :]
    verify(repacked)
    again, n_again = write(model, tmp_path / "again", WEIGHTS, None, repacked)
    assert n_again == 0
    check_content(model, again)
    other, n_other = write(model, tmp_path / "other", OTHER_WEIGHTS, None, open_shard(repacked.path))
    assert n_other == n_fetched > 0
    assert other.path.read_bytes() == expected.path.read_bytes()
    straight, _ = write(model, tmp_path / "straight", OTHER_WEIGHTS, repacker)
    from_repacked, n_from_repacked = write(model, tmp_path / "from repacked", OTHER_WEIGHTS, repacker, repacked)
    assert n_from_repacked == n_fetched
    assert from_repacked.path.read_bytes() == straight.path.read_bytes()


@pytest.mark.parametrize("limit_bytes", [100, 700])
def test_strips_of_any_size(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int) -> None:
    repacked, _ = write(model, tmp_path / "repacked", WEIGHTS, Kernels(8))
    monkeypatch.setattr("tpi.weights.shards.shard_source.BUFFER_BYTES", limit_bytes)
    again, n_fetched = write(model, tmp_path / "again", (1.0, 2.0), None, repacked)
    check_content(model, again)
    assert n_fetched == 0


def test_what_is_rearranged_nobody_knows_how_is_fetched(model: Model, tmp_path: Path) -> None:
    repacked, n_bytes = write(model, tmp_path / "repacked", WEIGHTS, Kernels(8, "sums"))
    again, n_fetched = write(model, tmp_path / "again", WEIGHTS, None, repacked)
    check_content(model, again)
    left = [part.n_bytes for piece in repacked.pieces for part in piece.parts if part.n_rows % 8]
    assert n_fetched == n_bytes - sum(left) and left


def test_damaged_ones_are_not_reused(model: Model, tmp_path: Path) -> None:
    repacked, _ = write(model, tmp_path / "repacked", WEIGHTS, Kernels(8))
    flip(repacked.path, repacked.file_offset(1) + 100)
    again, n_fetched = write(model, tmp_path / "again", WEIGHTS, None, repacked)
    check_content(model, again)
    assert n_fetched == sum(part.n_bytes for part in repacked.pieces[1].parts)


def test_headers_with_orders_that_cannot_be(model: Model, tmp_path: Path) -> None:
    repacked, _ = write(model, tmp_path / "repacked", WEIGHTS, Kernels(8))
    header = repacked.header
    order, *others = header.orders
    n_bits = 8 * order.cell_bytes
    wrong_orders = [
        msgspec.structs.replace(order, n_rows=16),
        msgspec.structs.replace(order, n_rows=0),
        msgspec.structs.replace(order, type_id=77),
        msgspec.structs.replace(order, places=order.places[:-2]),
        msgspec.structs.replace(order, places=order.places[:-2] + order.places[:2]),
        msgspec.structs.replace(order, places=order.places[:-2] + n_bits.to_bytes(2, "little")),
        msgspec.structs.replace(order, flips=b""),
    ]
    first = next(number for number, mark in enumerate(header.marks) if mark)
    wrong = [msgspec.structs.replace(header, orders=(one, *others)) for one in wrong_orders]
    wrong += [
        msgspec.structs.replace(header, marks=header.marks[:-1]),
        msgspec.structs.replace(header, marks=header.marks[:first] + b"\x63" + header.marks[first + 1 :]),
        msgspec.structs.replace(header, marks=b"\1" * len(header.marks)),
        msgspec.structs.replace(header, repacking=""),
    ]
    for one in wrong:
        with pytest.raises(ModelFileError, match="order of parts cannot be"):
            check_header(repacked.path, one, len(repacked.sums), repacked.layout.data_bytes)
