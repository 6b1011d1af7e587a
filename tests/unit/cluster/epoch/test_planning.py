"""Plans: what no devices could make possible is refused before anybody joins; what a worker brings is looked at as it
comes; the others get what is left."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.model.specs import make_spec
from tpi.cluster.control.messages import HeldShard, Offer
from tpi.cluster.epoch import planning
from tpi.cluster.epoch.plancheck import check_plan
from tpi.cluster.epoch.planning import (
    Device,
    assign_ranks,
    check_offer,
    check_settings,
    make_plan,
    with_rank,
)
from tpi.config import Folders, MasterSettings, Resources
from tpi.errors import UsageError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import Partition, divide
from tpi.model.spec import ModelSpec
from tpi.planner.chunks import Speeds

SPEC = make_spec()
BLOCKS = blocks_of(SPEC)
GIB = 1 << 30


def settings(**changes: Any) -> MasterSettings:
    folders = Folders(Path("/state"), Path("/shards"), Path("/cache"))
    values: dict[str, Any] = {
        "model": Path("model.gguf"), "folders": folders, "n_workers": 2, "resources": Resources(4 * GIB, n_threads=1)
    }  # fmt: skip
    return MasterSettings(**values | changes)


def offer(memory_bytes: int = GIB, **changes: Any) -> Offer:
    values: dict[str, Any] = {"memory_bytes": memory_bytes, "held": []}
    return Offer(**values | changes)


def locked(rank: int, *weights: float, digest: str = SPEC.digest) -> Offer:
    """Of a device that insists on its shard."""
    return offer(held=[HeldShard(digest, rank)], locked=divide(BLOCKS, weights))


# Before anybody joins.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_workers": 0},
        {"context": 512},
        {"context": 1},
        {"context": 2048, "n_parallel": 4},
        {"context": "auto"},
        {"kv_type": "Q8_0"},
        {"wire": "f32"},
        {"wire": "int8"},
        {"shares": (3, 0, 1)},
        {"layout": "0:a 1:b,c"},
        {"allreduce": "ring"},
    ],
)
def test_what_can_be_is_accepted(changes: dict[str, Any]) -> None:
    check_settings(settings(**changes), SPEC)


@pytest.mark.parametrize(
    ("changes", "spec", "said"),
    [
        ({"context": 513}, SPEC, "a context of 513 cannot be: made was trained for 1 to 512 tokens"),
        ({"context": 2049, "n_parallel": 4}, SPEC, "was trained for 1 to 512 tokens, 4 sequences of it have 2048"),
        ({"context": 0}, SPEC, "a context of 0 cannot be: made was trained for 1 to 512 tokens"),
        (
            {"context": 1 << 24},
            make_spec(n_context_train=1 << 30),
            "a context of 16777216 is too long: a frame of .* bytes is larger than the 67108864",
        ),
        ({"context": (1 << 24) + 1}, make_spec(n_context_train=1 << 30), "was trained for 1 to 16777216 tokens"),
        ({"kv_type": "Q4_1"}, SPEC, "not possible: a KV cache of type Q4_1; there are F16, Q8_0, Q4_0"),
        (
            {"kv_type": "Q4_0"},
            make_spec(head_dim=80),
            "not possible: .* needs heads of whole blocks, this model's have 80",
        ),
        ({"wire": "f64"}, SPEC, "not possible: a payload of f64; there are f32, f16, int8"),
        (
            {"wire": "int8"},
            make_spec(n_embd=272),
            "not possible: int8 needs a width of whole blocks of 32, this model has 272",
        ),
        ({"shares": (1, 1)}, SPEC, "there are 2 shares for 3 devices: give one to each, the master's first"),
        ({"shares": (1, 1, 1), "layout": "0-1:*"}, SPEC, "shares and a layout exclude each other"),
        ({"layout": "0-2:*"}, SPEC, "names layers that are not there: the model has 0 to 1"),
        ({"layout": "0:a"}, SPEC, "layer 1 stands in no part"),
        ({"allreduce": "ring", "is_reproducible": True}, SPEC, "ring cannot be reproducible: .*: take star"),
        (
            {"allreduce": "telepathy"},
            SPEC,
            "there is no allreduce .telepathy.: there are star, one-shot, two-shot, ring",
        ),
    ],
)
def test_what_no_devices_could_make_possible_is_refused(changes: dict[str, Any], spec: ModelSpec, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        check_settings(settings(**changes), spec)
    assert "\n" not in str(caught.value)


# Offers.


@pytest.mark.parametrize(
    ("changes", "first", "others"),
    [
        ({}, offer(), []),
        ({}, locked(1, 1, 1, 1), []),
        ({}, locked(2, 1, 1, 1), [locked(1, 1, 1, 1)]),
        ({}, locked(2, 1, 1, 1), [offer(held=[HeldShard(SPEC.digest, 2)])]),
        ({"shares": (3, 2, 1)}, locked(2, 3, 2, 1), []),
        ({"shares": (6, 4, 2)}, locked(2, 3, 2, 1), []),
    ],
)
def test_offers_that_can_be_used(changes: dict[str, Any], first: Offer, others: list[Offer]) -> None:
    check_offer(settings(**changes), SPEC, first, others)


WITHOUT_HEAD = Partition(3, divide(BLOCKS, [1, 1, 1]).shares[:-1])
NO_SHARD = "the shard that it brings cannot be used: it must be one of ranks 1 to 2 of the model that is served"
OTHERWISE = "was cut for other shares or another number of devices than 3: cut it again with `tpi shard`"


@pytest.mark.parametrize(
    ("changes", "bad", "others", "said"),
    [
        ({}, locked(1, 1, 1, 1, digest="another"), [], NO_SHARD),
        ({}, locked(0, 1, 1, 1), [], NO_SHARD),
        ({}, locked(3, 1, 1, 1), [], NO_SHARD),
        ({}, msgspec.structs.replace(locked(1, 1, 1, 1), held=[]), [], NO_SHARD),
        ({}, locked(1, 1, 1, 1), [locked(1, 1, 1, 1)], "another device has brought the shard of rank 1 already"),
        ({}, locked(1, 1, 1), [], OTHERWISE),
        ({}, locked(1, 1, 1, 1, 1), [], OTHERWISE),
        ({}, locked(2, 3, 2, 1), [locked(1, 1, 1, 1)], OTHERWISE),
        ({"shares": (1, 1, 1)}, locked(1, 3, 2, 1), [], OTHERWISE),
        (
            {},
            msgspec.structs.replace(locked(1, 1, 1, 1), locked=WITHOUT_HEAD),
            [],
            OTHERWISE,
        ),
        ({}, msgspec.structs.replace(locked(1, 1, 1, 1), locked=Partition(3, ())), [], OTHERWISE),
    ],
)
def test_offers_that_cannot_be_used(changes: dict[str, Any], bad: Offer, others: list[Offer], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_offer(settings(**changes), SPEC, bad, others)
    assert said in str(caught.value)


# Ranks.


def holding(*ranks: int) -> Offer:
    return offer(held=[HeldShard(SPEC.digest, rank) for rank in ranks])


@pytest.mark.parametrize(
    ("offers", "ranks"),
    [
        ([], []),
        ([("b", offer()), ("a", offer()), ("c", offer())], [2, 1, 3]),
        ([("b", offer()), ("a", holding(3)), ("c", offer())], [1, 3, 2]),
        ([("a", holding(2)), ("b", holding(2))], [2, 1]),
        ([("a", holding(2)), ("b", locked(2, 1, 1, 1))], [1, 2]),
        ([("a", holding(7, 2)), ("b", offer())], [2, 1]),
        ([("a", offer(held=[HeldShard("another", 2)])), ("b", offer())], [1, 2]),
        ([("b", holding(1, 2)), ("a", holding(1))], [1, 2]),
    ],
)
def test_ranks_go_to_those_who_have_their_shards(offers: list[tuple[str, Offer]], ranks: list[int]) -> None:
    assert assign_ranks(offers, SPEC) == ranks


# The plan.


def plan_of(offers: list[Offer], **changes: Any) -> Any:
    devices = [Device("master"), *(Device(name, one) for name, one in zip("abcdef", offers, strict=False))]
    return make_plan(settings(n_workers=len(offers), **changes), SPEC, 5, devices, 50_000_000)


def test_a_plan_is_one_that_can_be_followed() -> None:
    plan = plan_of([offer(GIB), offer(2 * GIB)])
    for rank in range(3):
        check_plan(with_rank(plan, rank))
    assert (plan.epoch, plan.rank, plan.n_cells, plan.payload, plan.kv_type) == (5, 0, 512, "f16", "F16")
    assert plan.partition == divide(BLOCKS, [4, 1, 2]), "in proportion to memory"
    assert (plan.n_parts, plan_of([]).n_parts) == (2, 1), "a rank that is alone waits for no sums"


def test_shares_come_from_where_they_are_given() -> None:
    offers = [offer(), offer()]
    assert plan_of(offers, shares=(1, 0, 3)).partition == divide(BLOCKS, [1, 0, 3])
    by_layout = plan_of(offers, layout="0:master 1:a,b head:master").partition
    assert [by_layout.contributors(block.index) for block in BLOCKS] == [(0,), (0,), (1, 2), (1, 2), (0,)]
    brought = locked(2, 3, 2, 1)
    assert plan_of([offer(), brought]).partition == brought.locked


def test_a_layout_and_a_shard_that_was_cut_otherwise() -> None:
    with pytest.raises(UsageError, match="the workers' shards were cut for another layout: start them without these"):
        plan_of([offer(), locked(2, 1, 1, 1)], layout="0-1:a,b")
    same = divide(BLOCKS, [1, 1, 1])
    plan = plan_of([offer(), locked(2, 1, 1, 1)], layout="0-1:0=1,1=1,2=1")
    assert plan.partition == same


def test_a_layout_names_devices_that_are_here() -> None:
    with pytest.raises(UsageError, match="there is no device 'z'; there are master, a, b"):
        plan_of([offer(), offer()], layout="0-1:z")


def test_passes_are_as_long_as_was_said() -> None:
    assert plan_of([offer()]).max_tokens == 128
    assert plan_of([offer()], chunk_tokens=100).max_tokens == 100
    assert plan_of([offer()], context=64).max_tokens == 64


@pytest.mark.parametrize(("n_cells", "expected"), [(1 << 19, 512), (1 << 20, 256)])
def test_no_longer_than_what_a_link_carries(monkeypatch: pytest.MonkeyPatch, n_cells: int, expected: int) -> None:
    """The mask of 512 tokens over 1 Mi cells alone is as large as the largest frame. Slow disks ask for such passes."""
    monkeypatch.setattr(planning, "measure_speeds", lambda *_: Speeds(1e12, 1.0))
    monkeypatch.setattr(planning, "are_cheap", lambda *_: True)
    roomy = replace(settings().resources, memory_bytes=1 << 40, window_bytes=1 << 20)
    spec = make_spec(n_context_train=n_cells)
    devices = [Device("master"), Device("a", offer(1 << 40, window_bytes=1 << 20, flop_per_s=1e12))]
    plan = make_plan(settings(n_workers=1, context=n_cells, resources=roomy), spec, 5, devices, 50_000_000)
    assert plan.max_tokens == expected
    check_plan(with_rank(plan, 1))
    with pytest.raises(UsageError, match="a context of 1048576 is too long: a frame of"):
        check_settings(settings(context=1 << 20, chunk_tokens=512), make_spec(n_context_train=1 << 20))


@pytest.mark.parametrize(("name", "n_more"), [("deltas", 1), ("windowed", 1), ("", 0)])
def test_what_is_pinned_has_a_place_of_its_own_where_cells_are_not_all(name: str, n_more: int) -> None:
    folder = Path(__file__).parents[3] / "trained"
    spec = read_spec(read_gguf(folder / f"{name}.gguf"), "") if name else SPEC
    plan = make_plan(settings(n_workers=0, n_parallel=3, pins=True), spec, 1, [Device("master")], 50_000_000)
    assert plan.n_sequences == 3 + n_more
    if n_more:
        with pytest.raises(UsageError, match="255 sequences and what is pinned are too many: at most 254"):
            check_settings(settings(n_parallel=255, pins=True), spec)


def test_passes_are_shorter_where_memory_is_tight() -> None:
    tight = replace(settings().resources, memory_bytes=1 << 20)
    assert plan_of([offer()], resources=tight).max_tokens == 64
