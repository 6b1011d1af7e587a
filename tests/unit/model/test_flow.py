"""Where the residual stream flows: whoever computes has all of it, and nothing is added twice."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.model.specs import make_spec
from tpi.model.architectures import blocks_of
from tpi.model.flow import Flow, first_members, flows_of, n_stages, typical_flow
from tpi.model.partition import Partition, divide
from tpi.model.spec import ModelSpec

Weights = Sequence[Sequence[float]]
"""By layer and rank; the head is the layer after the last."""


def partition_of(spec: ModelSpec, weights: Weights) -> Partition:
    blocks = blocks_of(spec)
    by_layer = [divide(blocks, row) for row in weights]
    shares = tuple(by_layer[block.layer].shares[block.index] for block in blocks)
    return Partition(len(weights[0]), shares)


def flows(weights: Weights, n_heads: int = 4) -> tuple[Flow, ...]:
    spec = make_spec(n_layers=len(weights) - 1, n_heads=n_heads, n_kv_heads=n_heads)
    return flows_of(blocks_of(spec), partition_of(spec, weights))


def brief(found: Sequence[Flow]) -> list[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    return [(flow.contributors, flow.receivers, flow.is_handed_over) for flow in found]


def move_streams(spec: ModelSpec, partition: Partition, found: Sequence[Flow]) -> None:
    """Moves streams as ranks do (``runtime.rank``), as bags of what was added to them, and looks at every one."""
    first = first_members(blocks_of(spec), partition)
    streams: dict[int, Counter[object]] = {rank: Counter(["embeddings"]) for rank in first}
    expected: Counter[object] = Counter(["embeddings"])
    for flow in found:
        parts = [(flow.block, rank) for rank in partition.contributors(flow.block)]
        assert flow.contributors == tuple(rank for _, rank in parts)
        for rank in flow.contributors:
            assert streams[rank] == expected, f"rank {rank} computes block {flow.block} without a whole stream"
        total: Counter[object] = Counter(parts)
        expected = expected + total
        if flow.is_handed_over:
            total += streams[flow.contributors[0]]
        for rank in flow.receivers:
            streams[rank] = total.copy() if flow.is_handed_over else streams[rank] + total
    assert found[-1].receivers == ()


rows = st.integers(1, 6).flatmap(
    lambda n_ranks: st.lists(
        st.lists(st.integers(0, 3).map(float), min_size=n_ranks, max_size=n_ranks).filter(any), min_size=2, max_size=6
    )
)


@given(rows, st.sampled_from([1, 2, 4]))
def test_who_computes_has_the_whole_stream(weights: Weights, n_kv_heads: int) -> None:
    """Tensor parallel, pipelines and mixtures; with more ranks than KV heads some hold a part of the FFN alone."""
    spec = make_spec(n_layers=len(weights) - 1, n_kv_heads=n_kv_heads)
    partition = partition_of(spec, weights)
    move_streams(spec, partition, flows_of(blocks_of(spec), partition))


def test_streams_that_are_not_handed_over_are_noticed() -> None:
    spec = make_spec(n_layers=2)
    partition = partition_of(spec, [[1, 0], [0, 1], [0, 1]])
    found = [msgspec.structs.replace(flow, is_handed_over=False) for flow in flows_of(blocks_of(spec), partition)]
    with pytest.raises(KeyError):
        move_streams(spec, partition, found)


def test_one_rank_keeps_all_to_itself() -> None:
    found = flows([[1], [1], [1]])
    assert brief(found) == [((0,), (0,), False)] * 4 + [((0,), (), False)]
    assert all(flow.is_local for flow in found)


def test_tensor_parallel() -> None:
    found = flows([[1, 1, 1]] * 3)
    everybody = (0, 1, 2)
    assert brief(found) == [(everybody, everybody, False)] * 4 + [(everybody, (), False)]
    assert not any(flow.is_local for flow in found)
    assert [flow.block for flow in found] == list(range(5))


def test_a_rank_without_a_share_takes_no_part() -> None:
    found = flows([[1, 0, 1]] * 3)
    assert brief(found) == [((0, 2), (0, 2), False)] * 4 + [((0, 2), (), False)]


def test_a_master_without_a_share_takes_no_part() -> None:
    found = flows([[0, 1, 1]] * 2)
    assert brief(found) == [((1, 2), (1, 2), False)] * 2 + [((1, 2), (), False)]


def test_more_ranks_than_heads() -> None:
    """Who holds a part of a layer's FFN gets the sums of its attention, too."""
    found = flows([[1, 1, 1]] * 2, n_heads=2)
    everybody = (0, 1, 2)
    assert brief(found) == [
        ((0, 1), everybody, False),
        (everybody, everybody, False),
        (everybody, (), False),
    ]
    assert found[0].participants == everybody


def test_a_pipeline() -> None:
    found = flows([[1, 0], [0, 1], [0, 1]])
    assert brief(found) == [
        ((0,), (0,), False),
        ((0,), (1,), True),
        ((1,), (1,), False),
        ((1,), (1,), False),
        ((1,), (), False),
    ]
    assert [flow.is_local for flow in found] == [True, False, True, True, True]
    assert n_stages(found) == 2 and typical_flow(found) is None


def test_from_one_to_several_and_back() -> None:
    found = flows([[1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 0, 0]])
    assert brief(found)[1:5] == [
        ((0,), (1, 2), True),
        ((1, 2), (1, 2), False),
        ((1, 2), (0,), True),
        ((0,), (0,), False),
    ]
    assert found[3].participants == (0, 1, 2) and n_stages(found) == 3


def test_who_has_the_stream_already_needs_no_handing_over() -> None:
    """A head on the master alone: it takes part in the last layer, so that the others only send it their parts."""
    found = flows([[1, 1], [1, 1], [1, 0]])
    assert brief(found)[2:] == [((0, 1), (0, 1), False), ((0, 1), (0,), False), ((0,), (), False)]
    assert n_stages(found) == 1


def test_one_who_comes_to_the_others_gets_the_stream() -> None:
    """All of the next layer's ranks take it over, those who have one, too."""
    found = flows([[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    assert brief(found)[1] == ((0, 1), (0, 1, 2), True)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([[1, 1], [1, 1]], (0, 1)), ([[0, 1], [1, 1]], (1,)), ([[1, 0, 1], [0, 1, 0]], (0, 2))],
)
def test_where_the_stream_begins(weights: Weights, expected: tuple[int, ...]) -> None:
    spec = make_spec(n_layers=1)
    assert first_members(blocks_of(spec), partition_of(spec, weights)) == expected


def test_the_typical_flow_has_the_most_ranks_that_add() -> None:
    found = flows([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
    typical = typical_flow(found)
    assert typical is not None
    assert (typical.contributors, typical.receivers, typical.is_handed_over) == ((1, 2, 3), (1, 2, 3), False)
    assert typical_flow(flows([[1], [1]])) is None


def test_a_flow_that_is_handed_over_is_better_than_none() -> None:
    handed = Flow(1, (0, 1), (2,), True)
    assert typical_flow([Flow(0, (0,), (0,), False), handed]) == handed
