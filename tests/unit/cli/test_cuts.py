"""How a model is cut, as ``tpi inspect --ranks`` tells it: experts, and blocks that are everybody's own."""

import pytest

from tests.unit.model.test_experts import expert_block, own_block
from tpi.cli.cuts import cut_facts, cut_lines
from tpi.model.partition import divide
from tpi.weights.layout import lay_out

VECTOR_BYTES, ROUTER_BYTES = 64 * 4, 64 * 4 * 3


@pytest.mark.parametrize(
    ("n_ranks", "ranges"),
    [
        (1, [["columns 0 to 15 of experts 0 to 2"]]),
        (2, [["columns 0 to 7 of experts 0 to 2"], ["columns 8 to 15 of experts 0 to 2"]]),
        (
            4,
            [
                ["columns 0 to 7 of experts 0 to 1"],
                ["columns 8 to 15 of experts 0 and columns 0 to 7 of experts 2"],
                ["columns 8 to 15 of experts 1"],
                ["columns 8 to 15 of experts 2"],
            ],
        ),
    ],
)
def test_experts_and_own_blocks(n_ranks: int, ranges: list[list[str]]) -> None:
    """Two layers alike; what several ranks hold are routers, scales of experts, and what is their own."""
    blocks = [expert_block(0, 3, 16, 8), own_block(1, 0), expert_block(2, 3, 16, 8), own_block(3, 2)]
    partition = divide(blocks, [1] * n_ranks)
    facts = cut_facts(blocks, partition)
    assert [rank["ranges"] for rank in facts["ranks"]] == [{"ffn": texts, "norm": ["all"]} for texts in ranges]
    for rank, found in enumerate(facts["ranks"]):
        pieces = lay_out(blocks, partition, rank)
        assert found["bytes"] == sum(part.n_bytes for piece in pieces for part in piece.parts)
    assert facts["copied"]["norm"] == 2 * (n_ranks - 1) * VECTOR_BYTES
    n_parts = sum(piece.expert is not None for rank in range(n_ranks) for piece in lay_out(blocks, partition, rank))
    assert facts["copied"]["ffn"] == 2 * (n_ranks - 1) * ROUTER_BYTES + (n_parts - 6) * 4
    lines = list(cut_lines(facts))
    assert len(lines) == n_ranks + 1 and f"ffn {ranges[0][0]}; norm all" in lines[0]
