"""How many cells there are: in steps, as many as are of use, as many as every rank has memory for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.model.specs import make_spec
from tests.variants.all import SMALL
from tests.variants.made import write_made
from tpi.cluster.control.messages import Offer, Plan
from tpi.cluster.epoch.cells import most_possible, n_cells_of
from tpi.cluster.epoch.footprint import Claim, needs_of
from tpi.cluster.epoch.host import piece_bytes_of
from tpi.cluster.epoch.plancheck import check_plan
from tpi.cluster.epoch.planning import Device, make_plan, with_rank
from tpi.cluster.epoch.rankplan import rank_model, rank_settings
from tpi.config import Folders, MasterSettings, Resources
from tpi.errors import MemoryBudgetError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import read_spec
from tpi.model.spec import ModelSpec
from tpi.planner.memory import plan_memory
from tpi.runtime.workspace import Workspace

MB = 1_000_000
PROCESS_BYTES = 50 * MB
LONG = make_spec(n_layers=4, n_kv_heads=8, n_ff=4096, n_vocab=4096, n_context_train=1 << 17)
"""4 kB of KV cache a cell and layer, in F16."""


@pytest.mark.parametrize(
    ("context", "trained", "n_cells"),
    [
        (None, 512, 512), (None, 4096, 2048), (1, 512, 32), (32, 512, 32), (33, 512, 64), (500, 500, 512),
        ("auto", 500, 512),
    ],
)  # fmt: skip
def test_cells_come_in_steps(context: Any, trained: int, n_cells: int) -> None:
    assert n_cells_of(context, make_spec(n_context_train=trained)) == n_cells


def test_all_sequences_together_can_have_what_each_was_trained_for() -> None:
    assert n_cells_of(1500, make_spec(n_context_train=500), 3) == 1504
    assert n_cells_of("auto", make_spec(n_context_train=500), 3) == 1504
    assert n_cells_of("auto", make_spec(n_context_train=1 << 20), 255) == 1 << 24
    assert n_cells_of(None, make_spec(n_context_train=4096), 255) == 2048


@pytest.mark.parametrize("n_possible", [0, 1, 31, 32, 100, 992, 1000, 1024, 5000])
def test_the_most_in_whole_blocks(n_possible: int) -> None:
    asked = list[int]()

    def is_possible(n_cells: int) -> bool:
        asked.append(n_cells)
        return n_cells <= n_possible

    assert most_possible(1024, is_possible) == min(n_possible // 32 * 32, 1024)
    assert len(asked) <= 7


def plan_of(memory: tuple[int, ...], spec: ModelSpec = LONG, **changes: Any) -> Plan:
    """Of ranks with so much memory, the master's first."""
    folders = Folders(Path("/state"), Path("/shards"), Path("/cache"))
    values: dict[str, Any] = {"n_workers": len(memory) - 1, "context": "auto", "chunk_tokens": 128} | changes
    settings = MasterSettings(Path("model.gguf"), folders, Resources(memory[0], n_threads=1), **values)
    offers = [Device(f"w{number}", Offer(n_bytes, [])) for number, n_bytes in enumerate(memory[1:], start=1)]
    return make_plan(settings, spec, 1, [Device("master"), *offers], PROCESS_BYTES)


def claim_of(plan: Plan, rank: int, memory: tuple[int, ...]) -> Claim:
    model = rank_model(with_rank(plan, rank))
    return Claim(model, piece_bytes_of(model, None), 60 * MB if rank else PROCESS_BYTES, memory[rank])


def total_bytes(claim: Claim, plan: Plan) -> int:
    """What the rank itself plans: the peak."""
    with Workspace(claim.model, rank_settings(plan, 1)) as workspace:
        needs = needs_of(workspace, claim.process_bytes)
    return plan_memory(needs, claim.sizes.minimum_bytes, claim.sizes.total_bytes, claim.limit_bytes, None).total_bytes


@pytest.mark.parametrize("kv_type", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("memory", [(200 * MB,), (150 * MB, 200 * MB), (200 * MB, 120 * MB, 200 * MB)])
def test_as_many_as_every_rank_has_room_for(memory: tuple[int, ...], kv_type: str) -> None:
    """A block more, and somewhere weights would have to be read that have room in memory with the usual context."""
    plan = plan_of(memory, kv_type=kv_type, n_parallel=3)
    claims = [claim_of(plan, rank, memory) for rank in range(len(memory))]
    settings = rank_settings(plan, 1)
    assert 2048 < plan.n_cells < 3 << 17 and plan.n_cells % 32 == 0 and plan.max_tokens == 128
    check_plan(plan)
    for claim in claims:
        assert claim.room_bytes(settings) >= claim.sizes.total_bytes > claim.two_pieces_bytes
        assert total_bytes(claim, plan) <= claim.limit_bytes
    more = replace(settings, n_cells=plan.n_cells + 32)
    assert any(claim.room_bytes(more) < claim.sizes.total_bytes for claim in claims)


@pytest.mark.parametrize("limit", [105 * MB, 110 * MB, 115 * MB])
def test_where_weights_are_read_anyway_a_longer_context_makes_that_little_more(limit: int) -> None:
    usual, plan = plan_of((limit,), context=None), plan_of((limit,))
    claim, settings = claim_of(plan, 0, (limit,)), rank_settings(plan, 1)
    n_read = claim.sizes.total_bytes - claim.room_bytes(rank_settings(usual, 1))
    assert n_read > 0 and usual.n_cells < plan.n_cells
    assert claim.sizes.total_bytes - claim.room_bytes(settings) <= 1.1 * n_read
    more = replace(settings, n_cells=plan.n_cells + 32)
    assert claim.sizes.total_bytes - claim.room_bytes(more) > 1.1 * n_read


@pytest.mark.parametrize("kv_type", ["F16", "Q8_0"])
@pytest.mark.parametrize("name", ["gemma4, experts", "gpt-oss", "qwen35moe"])
def test_windows_and_states_leave_less_room(tmp_path: Path, name: str, kv_type: str) -> None:
    """Rings and states are there for every sequence, however many cells there are."""
    path = write_made(tmp_path / "model.gguf", SMALL[name](), "F32")
    spec = msgspec.structs.replace(read_spec(read_gguf(path), ""), n_context_train=1 << 20)
    memory, found = (120 * MB,), list[int]()
    for n_parallel in (1, 64):
        plan = plan_of(memory, spec, kv_type=kv_type, n_parallel=n_parallel)
        claim = claim_of(plan, 0, memory)
        settings = rank_settings(plan, 1)
        wanted_bytes = claim.sizes.total_bytes
        assert claim.room_bytes(settings) >= wanted_bytes and total_bytes(claim, plan) <= memory[0]
        assert claim.room_bytes(replace(settings, n_cells=plan.n_cells + 32)) < wanted_bytes
        found.append(plan.n_cells)
    assert 2048 < found[1] < found[0] < 1 << 20


def test_less_of_a_cell_makes_more_cells() -> None:
    n_cells = [plan_of((200 * MB,), kv_type=kind).n_cells for kind in ("F16", "Q8_0", "Q4_0")]
    assert n_cells[0] * 1.5 < n_cells[1] and n_cells[1] * 1.3 < n_cells[2]


@pytest.mark.parametrize(("n_parallel", "expected"), [(1, 1024), (3, 3072)])
def test_no_more_than_sequences_can_fill(n_parallel: int, expected: int) -> None:
    spec = make_spec(n_context_train=1024)
    assert plan_of((1000 * MB, 1000 * MB), spec, n_parallel=n_parallel).n_cells == expected


def test_no_more_than_a_frame_has_room_for() -> None:
    spec = make_spec(n_layers=1, n_kv_heads=1, n_context_train=1 << 24)
    plan = plan_of((1 << 50, 1 << 50), spec, chunk_tokens=512)
    assert 1 << 19 < plan.n_cells < 1 << 20
    check_plan(plan)


def test_where_memory_is_tight_the_usual_context_takes_shorter_passes_and_no_more() -> None:
    limit = next(n for n in range(60 * MB, 120 * MB, MB) if plan_of((n,)).n_cells >= 2048)
    tight = plan_of((limit,))
    assert (tight.n_cells, tight.max_tokens) == (2048, 64)
    claim = claim_of(tight, 0, (limit,))
    assert total_bytes(claim, tight) <= limit
    less = plan_of((limit - 2 * MB,))
    assert less.n_cells < 2048 and total_bytes(claim_of(less, 0, (limit - 2 * MB,)), less) <= limit - 2 * MB


def test_too_little_for_any_is_told_by_the_rank() -> None:
    plan = plan_of((40 * MB,))
    assert plan.n_cells == 32
    with pytest.raises(MemoryBudgetError, match="this rank needs at least"):
        total_bytes(claim_of(plan, 0, (40 * MB,)), plan)
