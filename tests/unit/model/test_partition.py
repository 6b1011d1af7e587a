"""The partition rule: everything is held once, cut where data types allow, in proportion to the shares."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.model.specs import make_spec
from tests.variants.command_r import command_r
from tests.variants.made import write_made
from tpi.errors import UsageError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, check_spec, read_spec
from tpi.model.blocks import Axis
from tpi.model.partition import Partition, apportion, divide, is_whole
from tpi.model.spans import EMPTY, Share, Span, joined, total_size
from tpi.model.spec import ModelSpec
from tpi.model.states import KvState
from tpi.weights.layout import lay_out

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "IQ4_NL", "Q4_K", "Q6_K", "IQ2_XXS")
NOTHING = Share((EMPTY,))
WEIGHTS = st.lists(st.one_of(st.integers(0, 9), st.floats(0, 1e6, allow_subnormal=False)), min_size=1, max_size=9)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Any types of the column-cut tensors, different from layer to layer."""
    group, n_kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    head_dim = draw(st.sampled_from((32, 64, 80, 96, 128, 256)))
    width = group * n_kv_heads * head_dim
    n_ff = draw(st.one_of(st.integers(1, 30).map(lambda n: 256 * n), st.integers(1, 2000)))
    types = {"*": draw(st.sampled_from(TYPES))}
    for layer in range(2):
        for name, columns in (("attn_output", width), ("ffn_down", n_ff)):
            possible = ["F16", "F32"] if columns % 32 else list(TYPES[:6]) if columns % 256 else list(TYPES)
            types[f"blk.{layer}.{name}"] = draw(st.sampled_from(possible))
    return make_spec(
        types,
        n_kv_heads=n_kv_heads,
        n_heads=group * n_kv_heads,
        head_dim=head_dim,
        n_ff=n_ff,
        n_vocab=draw(st.integers(1, 700)),
        rope_factors=draw(st.booleans()),
    )


@settings(max_examples=150, deadline=None)
@given(spec=specs(), weights=WEIGHTS.filter(lambda values: sum(values) > 0))
def test_every_tensor_is_held_and_cut_between_blocks(spec: ModelSpec, weights: list[float]) -> None:
    blocks = blocks_of(spec)
    partition = divide(blocks, weights)
    assert is_whole(blocks, partition)
    for block in blocks:
        shares = partition.shares[block.index]
        assert partition.contributors(block.index) == tuple(r for r, share in enumerate(shares) if not share.is_empty)
        for slot in block.slots:
            held = [slot.extent(share) for share in shares if not share.is_empty]
            assert held
            if slot.axis is Axis.COPY:
                assert all(extent.rows == (Span(0, slot.tensor.n_rows),) for extent in held)
                continue
            spans = [span for extent in held for span in (extent.rows if slot.axis is Axis.ROWS else extent.columns)]
            assert len(spans) == len(held)
            whole = slot.tensor.n_rows if slot.axis is Axis.ROWS else slot.tensor.n_columns
            assert spans[0].start == 0 and spans[-1].stop == whole
            for before, after in pairwise(spans):
                shared = before.stop - after.start
                assert shared == 0 or (shared == slot.step and slot.group > 1), "a KV head whose query heads are cut"
            if slot.axis is Axis.COLUMNS:
                assert all(span.start % slot.tensor.type.block_elements == 0 for span in spans)


@settings(max_examples=100, deadline=None)
@given(spec=specs(), weights=WEIGHTS.filter(lambda values: sum(values) > 0))
def test_every_query_head_has_its_kv_head(spec: ModelSpec, weights: list[float]) -> None:
    partition = divide(blocks_of(spec), weights)
    for block in blocks_of(spec):
        for rank, share in enumerate(partition.shares[block.index]):
            if isinstance(block.state, KvState):
                q, k = (next(slot for slot in block.slots if slot.role == role) for role in ("q", "k"))
                dim, group, heads = block.state.head_dim, block.state.group, share.first
                assert q.extent(share).rows == joined([Span(heads.start * dim, heads.stop * dim)])
                kept = k.extent(share).rows
                assert block.state.widths(share) == (total_size(kept), total_size(kept))
                seen = [
                    (run.start + n, kv_run.start + n * kv_run.size // run.size)
                    for run, kv_run in block.state.runs(share)
                    for n in range(run.size)
                ]
                first_kv = kept[0].start // dim if kept else 0
                assert seen == [(n, (heads.start + n) // group - first_kv) for n in range(heads.size)]
            if not weights[rank]:
                assert share == NOTHING, "no share, no part"


@settings(max_examples=60, deadline=None)
@given(spec=specs(), weights=WEIGHTS.filter(lambda values: sum(values) > 0), piece_bytes=st.integers(100, 100_000))
def test_pieces_hold_exactly_the_slices(spec: ModelSpec, weights: list[float], piece_bytes: int) -> None:
    blocks = blocks_of(spec)
    partition = divide(blocks, weights)
    for rank in range(len(weights)):
        pieces = lay_out(blocks, partition, rank, piece_bytes)
        assert [piece.index for piece in pieces] == list(range(len(pieces)))
        for block in blocks:
            parts = [part for piece in pieces if piece.block == block.index for part in piece.parts]
            share = partition.shares[block.index][rank]
            assert bool(parts) != share.is_empty
            for slot in block.slots if parts else ():
                extent = slot.extent(share)
                mine = [part for part in parts if part.role == slot.role]
                assert joined(span for part in mine for span in part.rows) == extent.rows
                assert all(part.columns == extent.columns for part in mine)


@given(n_units=st.integers(0, 5000), weights=WEIGHTS.filter(lambda values: sum(values) > 0))
def test_apportion_is_fair(n_units: int, weights: list[float]) -> None:
    counts = apportion(n_units, weights)
    total = sum(weights)
    assert sum(counts) == n_units and min(counts) >= 0
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - n_units * weight / total) < 1 + 1e-6
        assert weight or not count
    order = sorted(range(len(weights)), key=lambda rank: weights[rank])
    assert all(counts[a] <= counts[b] + 1 for a, b in pairwise(order))


def test_ties_go_to_the_lower_rank() -> None:
    assert apportion(5, [1, 1, 1]) == [2, 2, 1]
    assert apportion(1, [1, 1, 1, 1]) == [1, 0, 0, 0]
    assert apportion(10, [3, 2, 2, 1]) == [4, 3, 2, 1]


@pytest.mark.parametrize("weights", [[1e308, 1e307], [5e-324, 5e-324], [1e-300, 1e300]])
def test_extreme_shares(weights: list[float]) -> None:
    assert sum(apportion(4000, weights)) == 4000


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1], [1e308, 1e308]])
def test_shares_that_mean_nothing(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="need numbers >= 0, at least one above 0"):
        apportion(8, weights)


def test_units_follow_the_types_of_their_layer() -> None:
    """Llama-2-7B: 32 heads of 128, as Q4_K two of them are a quantisation block; FFN 11008."""
    types = {"*": "Q4_K", "blk.1.attn_output": "Q4_0", "blk.1.ffn_down": "F16"}
    sizes: dict[str, Any] = {
        "n_embd": 4096,
        "n_heads": 32,
        "n_kv_heads": 32,
        "head_dim": 128,
        "n_ff": 11008,
        "n_vocab": 32000,
    }
    spec = make_spec(types, **sizes)
    blocks = blocks_of(spec)
    assert [block.measures[0].unit for block in blocks] == [2, 256, 1, 32, 32]
    assert [block.measures[0].total for block in blocks] == [32, 11008, 32, 11008, 32000]


def test_a_unit_covers_two_types_that_do_not_divide_each_other() -> None:
    spec = make_spec({"ffn_down": "Q4_0", "attn_output": "Q4_K"}, head_dim=96, n_heads=8, n_kv_heads=8)
    assert blocks_of(spec)[0].measures[0].unit == 8  # 96 * 8 = 3 * 256


def test_the_last_unit_of_the_head_is_ragged() -> None:
    spec = make_spec(n_vocab=300)
    shares = divide(blocks_of(spec), [1, 1, 1]).shares[-1]
    assert [share.first for share in shares] == [Span(0, 128), Span(128, 224), Span(224, 300)]


def test_more_ranks_than_units() -> None:
    spec = make_spec({"attn_output": "Q4_K"}, n_kv_heads=4)
    partition = divide(blocks_of(spec), [1] * 8)
    assert blocks_of(spec)[0].measures[0].unit == 4, "two KV heads, each with two heads"
    assert partition.contributors(0) == (0, 1)
    assert all(share == NOTHING for share in partition.shares[0][2:])


def test_what_is_used_value_by_value_lies_in_one_piece(tmp_path: Path) -> None:
    """96 heads with norms of their own; matrices are cut wherever a piece is full."""
    path = write_made(tmp_path / "model.gguf", command_r(1, has_norms=True, n_heads=96, n_kv_heads=96))
    blocks = blocks_of(read_spec(read_gguf(path), ""))
    for piece_bytes in range(3_000, 40_000, 1_700):
        pieces = lay_out(blocks, divide(blocks, [1]), 0, piece_bytes)
        roles = [part.role for piece in pieces for part in piece.parts]
        assert roles.count("q_norm") == roles.count("k_norm") == 1 and roles.count("q") > 1


def test_a_rank_without_anything() -> None:
    spec = make_spec()
    partition = divide(blocks_of(spec), [1, 0])
    assert lay_out(blocks_of(spec), partition, 1) == ()


def _changed(partition: Partition, block: int, rank: int, share: Share) -> Partition:
    shares = [list(row) for row in partition.shares]
    shares[block][rank] = share
    return Partition(partition.n_ranks, tuple(tuple(row) for row in shares))


def test_partitions_that_are_not_whole() -> None:
    spec = make_spec()
    blocks = blocks_of(spec)
    right = divide(blocks, [1, 1])
    assert is_whole(blocks, right)
    wrong = [
        Partition(2, right.shares[:-1]),
        Partition(3, right.shares),
        Partition(0, right.shares),
        Partition(1, tuple(row[:1] for row in right.shares)),
        _changed(right, 0, 1, Share((EMPTY,))),
        _changed(right, 0, 1, right.shares[0][0]),
        _changed(right, 0, 0, Share((Span(0, 3),))),
        _changed(right, 1, 0, Share((Span(0, 240),))),
        _changed(right, 1, 0, Share((Span(-256, 256),))),
        _changed(right, 1, 1, Share((Span(256, 1 << 40),))),
        _changed(right, 1, 1, Share((Span(256, 256),))),
        _changed(right, 4, 1, Share((Span(160, 299),))),
        _changed(right, 4, 1, Share((Span(192, 300),))),
        _changed(right, 4, 1, Share(())),
        _changed(right, 4, 1, Share((Span(160, 300), EMPTY))),
    ]
    for number, partition in enumerate(wrong):
        assert not is_whole(blocks, partition), number


def test_a_partition_travels() -> None:
    spec = make_spec()
    partition = divide(blocks_of(spec), [3, 0, 1])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(partition), type=Partition) == partition


def test_copied_slots_have_all_rows() -> None:
    block = blocks_of(make_spec())[0]
    assert block.slots[0].extent(NOTHING).rows == (Span(0, 1),)


def test_made_specs_are_right() -> None:
    check_spec(make_spec(rope_factors=True), Path("made"))
