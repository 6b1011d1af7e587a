"""How a prompt is cut into passes, and how much of one others wait for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.engine.chunks import ChunkSizes, next_chunk


def cut(n_tokens: int, most: int, *, is_staged: bool = False) -> list[int]:
    chunks = []
    while n_tokens:
        chunks.append(next_chunk(n_tokens, most, is_staged=is_staged))
        n_tokens -= chunks[-1]
    return chunks


@pytest.mark.parametrize(
    ("n_tokens", "most", "expected"),
    [
        (128, 128, [128]),
        (130, 128, [65, 65]),
        (300, 128, [100, 100, 100]),
        (300, 512, [300]),
        (130, 64, [64, 64, 2]),
        (101, 100, [100, 1]),
        (5, 512, [5]),
    ],
)
def test_passes_are_alike_if_they_are_long_enough(n_tokens: int, most: int, expected: list[int]) -> None:
    assert cut(n_tokens, most) == expected


@given(st.integers(1, 3000), st.integers(1, 600))
def test_no_pass_is_longer_or_unneeded(n_tokens: int, most: int) -> None:
    chunks = cut(n_tokens, most)
    assert all(1 <= n <= most for n in chunks)
    assert len(chunks) == -(-n_tokens // most)


@pytest.mark.parametrize(
    ("n_tokens", "most", "expected"),
    [(511, 128, [73] * 7), (128, 128, [64, 64]), (127, 128, [127]), (40, 128, [40]), (130, 64, [64, 64, 2])],
)
def test_stages_get_as_many_passes_as_are_long_enough(n_tokens: int, most: int, expected: list[int]) -> None:
    assert cut(n_tokens, most, is_staged=True) == expected


class _Machine:
    """A pass takes as long as its rows do, by whole tiles from 16 rows on, but at least as long as the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, row_s: float = 0.02, disk_s: float = 0.0) -> None:
        self._now_s, self._row_s, self._disk_s = 0.0, row_s, disk_s
        monkeypatch.setattr("tpi.engine.chunks.time.perf_counter", lambda: self._now_s)

    def run(self, sizes: ChunkSizes, n_answers: int, n_read: int) -> float:
        n_rows = n_answers + n_read
        took_s = max(self._disk_s, self._row_s * (n_rows if n_rows % 16 else 0.8 * n_rows))
        with sizes.timed(n_answers, n_read):
            self._now_s += took_s
        return took_s


@pytest.mark.parametrize("n_answers", [1, 4, 8, 12, 16])
def test_a_pass_with_prompts_takes_no_more_than_twice_the_time(monkeypatch: pytest.MonkeyPatch, n_answers: int) -> None:
    sizes, machine = ChunkSizes(), _Machine(monkeypatch)
    usual_s = machine.run(sizes, n_answers, 0)
    n_read, took_s = list[int](), list[float]()
    for _ in range(40):
        n_read.append(sizes.budget(n_answers, 512))
        took_s.append(machine.run(sizes, n_answers, n_read[-1]))
    *others_s, longest_s = sorted(took_s[10:])
    assert max(others_s) <= 2.05 * usual_s and longest_s <= 2.5 * usual_s  # one is tried again now and then
    assert 0.02 * sum(n_read) >= 0.25 * sum(took_s)  # nor is there much less read than might be


def test_a_tile_is_filled_where_that_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, machine = ChunkSizes(), _Machine(monkeypatch)
    machine.run(sizes, 8, 0)
    for _ in range(20):
        machine.run(sizes, 8, sizes.budget(8, 512))
    assert sizes.budget(8, 512) == 8


def test_passes_that_were_disturbed_starve_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, machine = ChunkSizes(), _Machine(monkeypatch)
    machine.run(sizes, 8, 0)
    for _ in range(30):
        n_tokens = sizes.budget(8, 512)
        assert n_tokens >= 3
        with sizes.timed(8, n_tokens):
            machine.run(ChunkSizes(), 400, 0)


def test_where_the_disk_takes_the_time_all_is_read_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, machine = ChunkSizes(), _Machine(monkeypatch, row_s=1e-6, disk_s=1.0)
    machine.run(sizes, 4, 0)
    budgets = []
    for _ in range(12):
        budgets.append(sizes.budget(4, 516))
        machine.run(sizes, 4, budgets[-1])
    assert budgets[0] <= 28 and budgets[-1] == 512


def test_nobody_who_decodes_no_limit() -> None:
    assert ChunkSizes().budget(0, 512) == 512
