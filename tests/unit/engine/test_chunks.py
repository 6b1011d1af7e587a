"""How a prompt is cut into passes, and how much of one others wait for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.engine.chunks import next_chunk


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
