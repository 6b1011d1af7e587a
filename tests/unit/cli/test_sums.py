"""How a cluster adds up, in words."""

import msgspec
import pytest

from tests.unit.cli.states import CHOICE, FEW, MANY
from tpi.cli.sums import describe, in_brief, ready_text
from tpi.cluster.reports import Choice, Detour, Ready, SumWay

HANDED_ON = Choice(SumWay("one-shot", "f16", 1, 0.002), SumWay("one-shot", "f16", 1, 0.002), 8, 0.002, 1e6)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (None, ""),
        (CHOICE, "sums by one-shot in f16, 1.0 ms each; for prompts by two-shot in f16"),
        (msgspec.structs.replace(CHOICE, many=FEW), "sums by one-shot in f16, 1.0 ms each"),
        (HANDED_ON, "handed on from device to device in 2 ms"),
    ],
)
def test_one_line(choice: Choice | None, text: str) -> None:
    assert in_brief(choice) == text


def test_what_stands_when_all_are_ready() -> None:
    assert ready_text(Ready(1)) == "ready: 1 device works"
    assert ready_text(Ready(1, context=512)) == "ready: 1 device works, context 512"
    assert ready_text(Ready(2, HANDED_ON)) == f"ready: 2 devices work; {in_brief(HANDED_ON)}"
    detours = Detour((1, 2), "a"), Detour((1, 3), "b")
    assert "2 pairs of devices reach each other through the master only" in ready_text(Ready(4, CHOICE, detours))


def test_sums_that_were_not_tried_have_no_times() -> None:
    lines = describe(HANDED_ON, (), ())
    assert lines[1:] == ["sums of up to 8 tokens: one-shot in f16", "longer: one-shot in f16"]


def test_a_device_without_a_name_has_its_rank() -> None:
    lines = describe(None, (Detour((1, 2), "no route"),), ("master", "attic"))
    assert lines == ["attic and rank 2 reach each other through the master only: no route"]


def test_the_ways_that_were_slower_stand_with_their_size() -> None:
    few, many = describe(CHOICE, (), ())[1:]
    assert "star in f16 (1 token in" in few and "tried as well" not in many and f"{MANY.n_tokens} tokens" in many
