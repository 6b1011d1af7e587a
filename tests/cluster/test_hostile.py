"""Callers who mean no good, for a short time each (``python -m tests.hostile`` is the long form)."""

from pathlib import Path

import pytest

from tests import hostile
from tests.cluster.serving import serve

LOOSE_RATIO = 4.0
"""Short times on a machine that has other things to do; the long form's limit is closer."""


@pytest.mark.timeout(300)
def test_who_asks_well_is_answered_well(tmp_path: Path, cache: Path) -> None:
    with serve("demo", tmp_path, cache, 4, *hostile.OPTIONS) as served:
        found = {result.attack: result for result in hostile.measure(served, hostile.SHORT)}
        assert list(found) == list(hostile.ATTACKS)
        for result in found.values():
            assert result.is_right and result.ratio < LOOSE_RATIO, result
        assert set(found["large"].seen) <= {"413", "cut off"} and set(found["broken"].seen) <= {"400", "403", "cut off"}
        assert found["hang_up"].seen["200"] > 5 and found["idle"].seen.get("closed", 0) > 0, found
        before = hostile.pss_bytes(served.master.process.pid)
        for _ in hostile.measure(served, hostile.SHORT, ("large", "hang_up")):
            pass
        assert hostile.pss_bytes(served.master.process.pid) < before * 1.05
