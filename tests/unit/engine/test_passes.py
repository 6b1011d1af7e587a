"""What is asked of a pass's rows: what its callers want, or, where none may depend on the others, whole rows."""

from typing import cast

import pytest

from tests.unit.engine.ranks import FakeRanks
from tpi.engine.passes import Passes
from tpi.engine.sequences import Sequences
from tpi.model.spec import ModelSpec
from tpi.runtime.logits import ALL, Wanted

FEW = Wanted(5, (3,), n_tokens=300)
MORE = Wanted(8, (7, 9), n_tokens=300)
STREAM = Wanted(1, n_tokens=300, is_streamed=True)


def passes_of(*, is_reproducible: bool) -> Passes:
    ranks = FakeRanks(cast(ModelSpec, None))
    ranks.is_reproducible = is_reproducible
    return Passes(ranks.as_runner, Sequences(ranks.as_runner, keeps_ended=False), ranks.table)


@pytest.mark.parametrize("is_reproducible", [False, True])
def test_nothing_is_wanted(is_reproducible: bool) -> None:
    assert passes_of(is_reproducible=is_reproducible)._together([]) == ALL


def test_what_contains_what_all_want() -> None:
    together = passes_of(is_reproducible=False)._together
    assert together([FEW]) == FEW
    assert together([FEW, MORE]) == Wanted(8, (3, 7, 9), n_tokens=300)
    assert together([FEW, Wanted(is_exact=False, n_tokens=300)]) == Wanted(n_tokens=300)
    assert together([Wanted(is_exact=False)]) == Wanted(is_exact=False), "16 bits will do"


@pytest.mark.parametrize("others", [[], [FEW], [MORE, STREAM], [Wanted(is_exact=False, n_tokens=300)]])
def test_where_none_may_depend_on_others_all_of_every_row_comes_in_32_bits(others: list[Wanted]) -> None:
    """Whoever else is there: only that streams are wanted as well, which changes no row."""
    together = passes_of(is_reproducible=True)._together
    for mine in (FEW, MORE, Wanted(is_exact=False, n_tokens=300)):
        found = together([mine, *others])
        assert (found.n_best, found.ids, found.is_exact, found.n_tokens) == (0, (), True, 300)
        assert found.is_streamed == (STREAM in others)
