"""Workers that cannot reach each other: their data goes through the master, the answer is the same, and the status says
which pair and why. In network namespaces."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.commands import Home, find_key
from tests.cluster.networks import Network, why_not

N_WORKERS = 3
PROMPT = "Tell me a story about a fox and a lantern."
PORTS = (7701, 7702, 7703)
"""Of the workers, by rank."""
SAME = ("--temperature", "0", "--max-tokens", "24", "--shares", "3,2,2,1", "--allreduce", "one-shot", "--threads", "1")
"""With these the answer has the same bits, whatever way they take."""

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(1 + N_WORKERS) as network:
        yield network


@pytest.fixture
def others(tmp_path: Path, cache: Path) -> Iterator[list[Home]]:
    with Home.several(N_WORKERS, tmp_path, cache) as homes:
        yield homes


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> str:
    """What the same cluster on one machine answers."""
    home = Home(tmp_path_factory.mktemp("expected") / "home", cache)
    ended = home.run("run", "demo", PROMPT, *SAME, "--local-devices", str(1 + N_WORKERS))
    assert ended.code == 0, ended.err
    return ended.out


def answer(
    network: Network, home: Home, others: Sequence[Home], program: str | None = None
) -> tuple[str, dict[str, Any], list[str]]:
    """What the cluster on this network answers, and its status: as data, and what it says about detours. ``program`` is
    run in place of ``tpi serve``."""
    with ExitStack() as stack:
        options = ["--bind", network.address(0), "--workers", str(N_WORKERS), *SAME]
        serve = stack.enter_context(home.start("serve", "demo", *options, program=program, through=network.on(0)))
        key, joins = find_key(serve), []
        for rank, (other, port) in enumerate(zip(others, PORTS, strict=True), start=1):
            words = ["join", key, "--name", f"w{rank}", "--threads", "1", "--port", str(port)]
            joins.append(stack.enter_context(other.start(*words, through=network.on(rank))))
        serve.wait_for("ready: 4 devices work")
        status = json.loads(home.run("status", "--json").out)
        told = [line for line in home.run("status").out.splitlines() if "through the master only" in line]
        ended = serve.wait(PROMPT + "\n")
        assert ended.code == 0, ended.err
        assert [join.process.wait(20) for join in joins] == [0] * N_WORKERS
        pairs = len(told)
        assert (f"{pairs} pairs of devices reach each other through the master only" in ended.err) == bool(pairs)
    return ended.out, status, told


def test_all_reach_each_other(network: Network, home: Home, others: list[Home], expected: str) -> None:
    """So that the other tests show what they claim to."""
    out, status, told = answer(network, home, others)
    assert out == expected and (status["detours"], told) == ([], [])


def test_what_one_sends_the_other_is_lost(network: Network, home: Home, others: list[Home], expected: str) -> None:
    network.drop(1, 3)
    out, status, told = answer(network, home, others)
    assert out == expected
    assert [detour["ranks"] for detour in status["detours"]] == [[1, 3]]
    (line,) = told
    assert line.startswith("w1 and w3 reach each other through the master only: ") and "did not answer" in line


def test_calls_are_refused(network: Network, home: Home, others: list[Home], expected: str) -> None:
    network.refuse(2, 3)
    out, status, told = answer(network, home, others)
    assert out == expected
    assert [detour["ranks"] for detour in status["detours"]] == [[2, 3]]
    (line,) = told
    assert line.startswith("w2 and w3 reach each other through the master only: ") and "refused" in line


@pytest.mark.parametrize(("caller", "called"), [(1, 2), (2, 1)])
def test_calls_get_through_one_way_only(
    network: Network, home: Home, others: list[Home], expected: str, caller: int, called: int
) -> None:
    """Then the other of the two calls, and no detour is needed."""
    network.drop_calls(caller, called, PORTS[called - 1])
    out, status, told = answer(network, home, others)
    assert out == expected and (status["detours"], told) == ([], [])


def test_workers_that_reach_the_master_only(network: Network, home: Home, others: list[Home], expected: str) -> None:
    network.drop(1, 2)
    network.drop(1, 3)
    network.refuse(2, 3)
    out, status, told = answer(network, home, others)
    assert out == expected
    assert [detour["ranks"] for detour in status["detours"]] == [[1, 2], [1, 3], [2, 3]]
    assert [line.split(" reach")[0] for line in told] == ["w1 and w2", "w1 and w3", "w2 and w3"]


def test_what_the_star_does_without_is_not_relayed_where_many_are_missing(
    network: Network, home: Home, others: list[Home]
) -> None:
    """Here: from the first pair on."""
    for pair in ((1, 2), (1, 3), (2, 3)):
        network.refuse(*pair)
    program = "import tpi.cluster.epoch.linking as o; o._MAX_DETOURS = 0; import sys, tpi.cli.main as m; "
    out, status, told = answer(network, home, others, program + "sys.exit(m.main())")
    by_star = home.run("run", "demo", PROMPT, *SAME, "--allreduce", "star", "--local-devices", str(1 + N_WORKERS))
    assert out == by_star.out and (status["detours"], told) == ([], [])
    assert (status["choice"]["few"]["algorithm"], status["choice"]["many"]["algorithm"]) == ("star", "star")
    assert status["notes"] == ["3 pairs of devices cannot reach each other: sums are added up by star"]
