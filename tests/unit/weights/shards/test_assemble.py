"""A changed share moves only what is new; the store finds what there is."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.weights.helpers import FakeSource, Model, check_content, cut_shard, flip, make_model
from tpi.model.spans import Span, joined
from tpi.weights.layout import Piece
from tpi.weights.patches import Patch, intersect, placed_patches, subtract
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard_format import layout_of
from tpi.weights.shards.shard_source import ShardSource
from tpi.weights.shards.store import ShardStore


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), n_ff=1536)


@pytest.mark.parametrize("old, new", (((1, 1), (2, 3)), ((1, 1), (3, 2)), ((1, 2, 1), (1, 1)), ((1, 1), (1, 1))))
def test_a_changed_share_fetches_only_what_is_new(
    model: Model, tmp_path: Path, old: tuple[float, ...], new: tuple[float, ...]
) -> None:
    fetched = 0
    for rank in (0, 1):
        before = cut_shard(model, tmp_path / f"old{rank}", old, rank)
        header = model.header(model.partition(*new), rank, 60_000)
        held = byte_set(model, before.pieces)
        wanted = byte_set(model, layout_of(header).pieces)
        source = FakeSource(model)
        with ShardSource(before) as older:
            report = write_shard(tmp_path / f"new{rank}", header, source, [older])
        check_content(model, report.shard)
        missing = sum(len(wanted[name] - held.get(name, set())) for name in wanted)
        assert report.fetched_bytes == source.n_bytes == missing
        parts = [part for piece in report.shard.pieces for part in piece.parts]
        assert report.fetched_bytes + report.reused_bytes == sum(part.n_bytes for part in parts)
        fetched += missing
    assert (fetched == 0) == (old == new)


def byte_set(model: Model, pieces: Sequence[Piece]) -> dict[str, set[tuple[int, int]]]:
    """The (row, byte) pairs of each tensor that pieces hold."""
    result: dict[str, set[tuple[int, int]]] = {}
    for piece in pieces:
        for patch in (place.patch for part in piece.parts for place in placed_patches(part)):
            runs = patch.runs_in((Span(0, model.gguf.tensors[patch.tensor].n_columns),))
            columns = [column for run in runs for column in range(run.start, run.stop)]
            rows = range(patch.rows.start, patch.rows.stop)
            result.setdefault(patch.tensor, set()).update((row, column) for row in rows for column in columns)
    return result


def test_damaged_pieces_are_not_reused(model: Model, tmp_path: Path) -> None:
    before = cut_shard(model, tmp_path / "old", (1, 1), 0)
    flip(before.path, before.file_offset(2) + 7)
    header = model.header(model.partition(1, 1), 0)
    with ShardSource(before) as older:
        report = write_shard(tmp_path / "new", header, FakeSource(model), [older])
    check_content(model, report.shard)
    assert report.fetched_bytes == sum(part.n_bytes for part in before.pieces[2].parts)


spans = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda ends: Span(min(ends), max(ends)))
ends = st.lists(st.integers(0, 9), min_size=2, max_size=6, unique=True).map(sorted)
several = ends.map(lambda n: joined(Span(*pair) for pair in zip(n[::2], n[1::2], strict=False)))
patches = st.builds(Patch, st.just("t"), st.just(0), spans, several)


@given(a=patches, b=patches)
def test_patches_are_sets(a: Patch, b: Patch) -> None:
    def of(patch: Patch) -> set[tuple[int, int]]:
        rows = range(patch.rows.start, patch.rows.stop)
        columns = [column for span in patch.columns for column in range(span.start, span.stop)]
        return {(row, column) for row in rows for column in columns}

    common = intersect(a, b)
    assert of(common) == of(a) & of(b)
    if not common.is_empty:
        left = [of(patch) for patch in subtract(a, common)]
        assert set().union(*left) == of(a) - of(b)
        assert sum(map(len, left)) == len(of(a) - of(b))


def test_the_store_finds_names_and_removes(model: Model, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=5)
    store = ShardStore(tmp_path / "shards")
    assert store.shards() == [] and store.try_find(model.spec.digest, ()) is None
    made = []
    for owner, weights in ((model, (1.0, 1.0)), (model, (2.0, 1.0)), (other, (1.0, 1.0))):
        pieces = owner.pieces(owner.partition(*weights), 0)
        made.append(cut_shard(owner, store.path_for(owner.spec.digest, 0, pieces), weights, 0))
        assert store.try_find(owner.spec.digest, pieces) == made[-1]
    assert len({shard.path for shard in store.shards()}) == 3
    assert {shard.path for shard in store.shards(model.spec.digest)} == {made[0].path, made[1].path}
    notes = [shard.path.with_name(shard.path.name + ".disk") for shard in made]
    for note in (*notes, store.disk_note(model.spec.digest)):
        note.write_bytes(b"{}")
    (store.folder / f"junk{made[0].path.suffix}").write_bytes(b"junk")
    made[0].path.with_name(made[0].path.name + ".part").write_bytes(b"unfinished")
    assert len(store.shards()) == 3
    assert store.remove_older(made[1]) >= made[0].n_bytes
    assert {shard.path for shard in store.shards()} == {made[1].path, made[2].path}
    assert not list(store.folder.glob("*.part"))
    assert set(store.folder.glob("*.disk")) == {notes[1], notes[2]}
    assert store.path_for("../../evil/" * 9, 0, ()).parent == store.folder
