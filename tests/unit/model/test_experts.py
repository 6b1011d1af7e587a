"""Blocks with experts, and blocks that are everybody's own: how they are cut, and the pieces that ranks have."""

import sys
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpi.model.blocks import OWN, Axis, Block, Experts, Slot
from tpi.model.partition import Partition, divide, is_whole
from tpi.model.spans import EMPTY, Share, Span, joined, total_size
from tpi.model.spec import TensorSpec
from tpi.model.steps import Steps
from tpi.weights.layout import PART_ALIGNMENT, lay_out

N_EMBD = 64


class Nothing:
    """A graph that nobody builds."""

    def build(self, g: Steps[object]) -> object:
        raise AssertionError


def expert_block(index: int, n: int, width: int, unit: int, type_id: int = 0) -> Block:
    """A block with a router and experts of two matrices."""
    up = Slot("up", TensorSpec(f"{index}.up", type_id, N_EMBD, n * width), Axis.ROWS)
    down = Slot("down", TensorSpec(f"{index}.down", type_id, width, n * N_EMBD), Axis.COLUMNS)
    bias = Slot("bias", TensorSpec(f"{index}.bias", 0, N_EMBD, n), Axis.FIRST, rows=Span(0, 1))
    scale = Slot("scale", TensorSpec(f"{index}.scale", 0, n, 1), Axis.COPY, column=0)
    experts = Experts(n, 2, width, unit, (up, down, bias, scale), Nothing())
    router = Slot("router", TensorSpec(f"{index}.router", 0, N_EMBD, n), Axis.COPY)
    return Block(index, "ffn", index, (experts.whole(),), (router,), Nothing(), experts=experts)


def own_block(index: int, layer: int) -> Block:
    norm = Slot("norm", TensorSpec(f"{index}.norm", 0, N_EMBD, 1), Axis.COPY)
    return Block(index, "norm", layer, OWN, (norm,), Nothing(), is_own=True)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    n_units=st.integers(1, 8),
    unit=st.integers(1, 16),
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any),
)
def test_every_column_of_every_expert_is_held_once(n: int, n_units: int, unit: int, weights: list[int]) -> None:
    width = n_units * unit
    block = expert_block(0, n, width, unit)
    experts, partition = block.experts, divide([block], weights)
    assert experts is not None and is_whole([block], partition)
    shares = partition.shares[0]
    for expert in range(n):
        held = [experts.columns(share, expert) for share in shares]
        assert joined(sorted((span for span in held if span.size), key=lambda span: span.start)) == (Span(0, width),)
        assert total_size(held) == width
        slots = {slot.role: slot for slot in experts.slots_of(expert)}
        for columns in held:
            rows = joined([Span(expert * width + columns.start, expert * width + columns.stop)])
            assert slots["up"].extent(Share((columns,))).rows == rows
            assert slots["down"].extent(Share((columns,))).columns == joined([columns])
            assert slots["down"].extent(Share((columns,))).rows == (Span(expert * N_EMBD, (expert + 1) * N_EMBD),)
            first = () if columns.start or not columns.size else (Span(expert, expert + 1),)
            assert slots["bias"].extent(Share((columns,))).rows == first
            assert slots["scale"].extent(Share((columns,))).columns == (Span(expert, expert + 1),)
    if n_units % len(weights) == 0 and len(set(weights)) == 1:
        alike = [{experts.columns(share, expert) for expert in range(n)} for share in shares]
        assert all(len(found) == 1 for found in alike), "the same columns of all"


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), weights=st.lists(st.integers(0, 5), min_size=1, max_size=7).filter(any))
def test_an_expert_is_a_piece(n: int, weights: list[int]) -> None:
    blocks = [expert_block(0, n, 40, 8), own_block(1, 0), expert_block(2, n, 40, 8)]
    partition = divide(blocks, weights)
    for rank in range(len(weights)):
        pieces = lay_out(blocks, partition, rank, 600)
        assert [piece.index for piece in pieces] == list(range(len(pieces)))
        for number, group in groupby(pieces, lambda piece: piece.block):
            found = list(group)
            block, share = blocks[number], partition.shares[number][rank]
            experts = [piece.expert for piece in found]
            held = [expert for expert in range(n) if block.experts and block.experts.columns(share, expert).size]
            assert experts == [None] * (len(found) - len(held)) + held, "experts follow, in their order"
            for piece in found:
                end = piece.parts[-1].offset + piece.parts[-1].n_bytes
                assert piece.n_bytes == end and all(part.offset % PART_ALIGNMENT == 0 for part in piece.parts)
        blocks_held = {piece.block for piece in pieces}
        assert blocks_held == ({0, 1, 2} if partition.shares[0][rank].first.size else set())


def test_own_blocks_follow_their_layers() -> None:
    blocks = [expert_block(0, 2, 8, 4), own_block(1, 0)]
    partition = divide(blocks, [1, 0, 1])
    assert partition.shares[1] == (Share((Span(0, 1),)), Share((EMPTY,)), Share((Span(0, 1),)))
    assert is_whole(blocks, partition)
    for wrong in (Share((Span(0, 1),)), Share(()), Share((Span(0, 2),))):
        shares = (partition.shares[0], (partition.shares[1][0], wrong, partition.shares[1][2]))
        assert not is_whole(blocks, Partition(3, shares))


@pytest.mark.parametrize("n_ranks", [1, 4])
def test_many_experts_take_little_memory(n_ranks: int) -> None:
    """40 layers of 256 experts: some MB of descriptions on the only rank."""
    blocks = [expert_block(index, 256, 512, 256 // n_ranks) for index in range(40)]
    pieces = lay_out(blocks, divide(blocks, [1] * n_ranks), 0)
    assert len(pieces) == 40 * 257
    columns = {id(part.columns) for piece in pieces for part in piece.parts if part.role in ("up", "down")}
    assert len(columns) <= 2, "equal ones are the same"
    n_bytes = sum(
        sys.getsizeof(piece) + sys.getsizeof(piece.parts) + sum(map(sys.getsizeof, piece.parts)) for piece in pieces
    )
    assert n_bytes < 10_000_000
