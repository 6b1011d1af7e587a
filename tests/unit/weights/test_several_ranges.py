"""Parts of several ranges of rows and of columns: from a file, from older shards, over several ranks, in a window."""

import ctypes
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.weights.helpers import FakeSource, Model, check_content, make_model
from tests.unit.weights.shards.test_orders import Kernels
from tpi.model.architectures import blocks_of
from tpi.model.spans import Span, Spans, joined
from tpi.testing.window import MemoryWindow
from tpi.weights.files import round_up
from tpi.weights.layout import PART_ALIGNMENT, Part, Piece
from tpi.weights.patches import placed_patches
from tpi.weights.shards import assemble, shard_format
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.repacking import RepackingKernels, repacked_header
from tpi.weights.shards.shard import Shard
from tpi.weights.shards.shard_source import ShardSource
from tpi.weights.slices import GgufSource, SliceSource
from tpi.weights.stored import lies_in_gguf, stored_from_gguf, stored_from_shard
from tpi.weights.strips import Strips

MATRIX, OTHER = "blk.0.ffn_down.weight", "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), "Q8_0", n_layers=1, n_ff=1024)


def part_of(model: Model, tensor: str, rows: Spans, columns: Spans, offset: int = 0) -> Part:
    return Part("", tensor, model.gguf.tensors[tensor].type.id, rows, columns, offset)


def pieces_of(*parts: Part) -> tuple[Piece, ...]:
    """All parts in one piece, the last one as an expert of its own."""
    placed: list[Part] = []
    for part in parts[:-1]:
        end = placed[-1].offset + placed[-1].n_bytes if placed else 0
        offset = round_up(end, PART_ALIGNMENT)
        placed.append(Part(part.role, part.tensor, part.type_id, part.rows, part.columns, offset))
    first = Piece(0, 0, placed[-1].offset + placed[-1].n_bytes, tuple(placed))
    return first, Piece(1, 0, parts[-1].n_bytes, parts[-1:], 5)


def write(
    model: Model,
    path: Path,
    pieces: tuple[Piece, ...],
    source: SliceSource,
    older: ShardSource | None = None,
    repacker: RepackingKernels | None = None,
) -> Shard:
    """A shard of pieces that no partition has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_format, "lay_out", lambda *_: pieces)
        header = model.header(model.partition(1, 0), 1)
        if repacker is not None:
            header = repacked_header(header, pieces, repacker)
        return write_shard(path, header, source, [older] if older else [], repacker=repacker).shard


def spans(limit: int, unit: int) -> st.SearchStrategy[Spans]:
    """One to four ranges below ``limit``, cut at multiples of ``unit``."""
    ends = st.lists(st.integers(0, limit // unit), min_size=2, max_size=8, unique=True).filter(
        lambda n: len(n) % 2 == 0
    )
    return ends.map(sorted).map(
        lambda found: joined(Span(a * unit, b * unit) for a, b in zip(found[::2], found[1::2], strict=True))
    )


def parts(model: Model) -> st.SearchStrategy[Part]:
    def of(name: str) -> st.SearchStrategy[Part]:
        tensor = model.gguf.tensors[name]
        rows, columns = spans(tensor.n_rows, 1), spans(tensor.n_columns, 32)
        return st.builds(lambda rows, columns: part_of(model, name, rows, columns), rows, columns)

    return st.sampled_from((MATRIX, OTHER)).flatmap(of)


def cells(pieces: tuple[Piece, ...]) -> dict[str, set[tuple[int, int]]]:
    """The rows and columns, in quantisation blocks, that pieces have of each tensor."""
    found: dict[str, set[tuple[int, int]]] = {}
    for patch in (placed.patch for piece in pieces for part in piece.parts for placed in placed_patches(part)):
        columns = [column for span in patch.columns for column in range(span.start // 32, span.stop // 32)]
        rows = range(patch.rows.start, patch.rows.stop)
        found.setdefault(patch.tensor, set()).update((row, column) for row in rows for column in columns)
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), is_packed=st.booleans(), buffer_bytes=st.sampled_from((500, 4_000_000)))
def test_only_what_is_new_is_fetched(
    model: Model, tmp_path: Path, data: st.DataObject, is_packed: bool, buffer_bytes: int
) -> None:
    old, new = (pieces_of(*data.draw(st.lists(parts(model), min_size=2, max_size=4))) for _ in range(2))
    kernels = Kernels(4, "changed and torn") if is_packed else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "BUFFER_BYTES", buffer_bytes)
        with GgufSource(model.gguf) as source:
            before = write(model, tmp_path / "old", old, source, repacker=kernels)
        if not is_packed:
            check_content(model, before)
        fake = FakeSource(model)
        with ShardSource(before) as older:
            after = write(model, tmp_path / "new", new, fake, older)
    check_content(model, after)
    held, wanted = cells(old), cells(new)
    fetched = sum(len(wanted[name] - held.get(name, set())) for name in wanted)
    several = sum(part.n_bytes for piece in new for part in piece.parts) // 34 - sum(map(len, wanted.values()))
    assert fetched * 34 <= fake.n_bytes <= (fetched + several) * 34
    assert stored_from_shard(after).pieces[1].is_on_demand and not stored_from_shard(after).pieces[0].is_on_demand


def test_ranges_of_columns_come_from_shared_rows(model: Model, tmp_path: Path) -> None:
    shared = Strips()
    shared.expect(blocks_of(model.spec), model.partition(1, 1))
    wanted = part_of(model, MATRIX, (Span(3, 90), Span(100, 256)), (Span(64, 96), Span(512, 800)))
    with GgufSource(model.gguf, shared.reader(lambda: 0)) as source:
        check_content(model, write(model, tmp_path / "s", pieces_of(wanted, wanted), source))


def test_the_window_of_tests_cuts_the_same(model: Model) -> None:
    columns = (Span(0, 32), Span(96, 256))
    pieces = pieces_of(
        part_of(model, MATRIX, (Span(0, 8), Span(16, 24), Span(250, 256)), columns),
        part_of(model, OTHER, (Span(7, 9),), (Span(0, 256),)),
        part_of(model, OTHER, (Span(1, 2), Span(3, 4)), columns),
    )
    window = MemoryWindow(model.gguf, pieces)
    for piece in (*pieces, pieces[0]):
        with window.hold(piece.index, hints=(1,)) as held:
            for part, address in zip(piece.parts, held.part_addresses, strict=True):
                assert address % PART_ALIGNMENT == 0
                assert ctypes.string_at(address, part.n_bytes) == model.part(part)
    assert window.held == [0, 1, 0]


@pytest.mark.parametrize(
    ("rows", "columns", "lies"),
    [
        ((Span(2, 9),), (Span(0, 1024),), True),
        ((Span(2, 3),), (Span(32, 96),), True),
        ((Span(2, 9), Span(11, 12)), (Span(0, 1024),), False),
        ((Span(2, 9),), (Span(0, 992),), False),
        ((Span(2, 3),), (Span(32, 96), Span(128, 160)), False),
    ],
)
def test_what_lies_in_the_file(model: Model, rows: Spans, columns: Spans, lies: bool) -> None:
    pieces = pieces_of(part_of(model, OTHER, (Span(0, 256),), (Span(0, 256),)), part_of(model, MATRIX, rows, columns))
    assert lies_in_gguf(model.gguf, pieces) == lies
    if not lies:
        return
    stored = stored_from_gguf(model.gguf, pieces)
    assert [piece.is_on_demand for piece in stored.pieces] == [False, True]
    (extent,), (at,) = stored.pieces[1].extents, stored.pieces[1].part_offsets
    part = pieces[1].parts[0]
    with stored.paths[extent.file].open("rb") as file:
        file.seek(extent.file_offset + at)
        assert file.read(part.n_bytes) == model.part(part)
    assert extent.file_offset + extent.n_bytes >= extent.file_offset + at + part.n_bytes
