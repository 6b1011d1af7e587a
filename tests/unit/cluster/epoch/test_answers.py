"""What workers tell of their measurements, and what cannot be."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tpi.cluster.control.messages import Measured
from tpi.cluster.epoch.answers import check_links, check_trials
from tpi.errors import ProtocolError

BY_RANK = cast(Any, {1: SimpleNamespace(title="pi (rank 1)")})
OWN = Measured(1, (0.0, 0.1), 100, 0.5)
OWN_SUMS = Measured(1, sums_s=(0.1, 0.2), cpu_s=(0.1, 0.1))


def test_what_can_be() -> None:
    check_links(BY_RANK, [OWN, Measured(1, (0.1, 0.0), 100, 0.4)], 2)
    check_trials(BY_RANK, [OWN_SUMS, Measured(1, sums_s=(0.0, 0.3), cpu_s=(0.0, 0.1))], 2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Measured(1, (0.1,), 100, 0.4), "measured 1 links with 100 bytes each, not 2 with 100"),
        (Measured(1, (0.1, 0.0), -1, 0.4), "with -1 bytes each"),
        (Measured(1, (0.1, float("nan")), 100, 0.4), "measured nan s; 0 to 3600 s can be"),
        (Measured(1, (0.1, -1.0), 100, 0.4), "measured -1.0 s"),
        (Measured(1, (0.1, 0.0), 100, float("inf")), "measured inf s"),
    ],
)
def test_links_that_cannot_be(answer: Measured, said: str) -> None:
    with pytest.raises(ProtocolError, match=rf"^pi \(rank 1\) .*{said}"):
        check_links(BY_RANK, [OWN, answer], 2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Measured(1), "tried 0 sums and took the time of 0, not of 2"),
        (Measured(1, sums_s=(0.1, 0.2), cpu_s=(0.1,)), "took the time of 1, not of 2"),
        (Measured(1, sums_s=(0.1, float("nan")), cpu_s=(0.1, 0.1)), "measured nan s"),
        (Measured(1, sums_s=(0.1, 0.2), cpu_s=(0.1, -0.1)), "measured -0.1 s"),
    ],
)
def test_sums_that_cannot_be(answer: Measured, said: str) -> None:
    with pytest.raises(ProtocolError, match=rf"^pi \(rank 1\) .*{said}"):
        check_trials(BY_RANK, [OWN_SUMS, answer], 2)
