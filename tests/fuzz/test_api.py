"""The API against its own description, with a few hundred requests (``make fuzz-api`` sends ten thousand)."""

from pathlib import Path

from tests.cluster.serving import serve
from tests.fuzz import api


def test_responses_are_as_described(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with serve("demo", tmp_path, tmp_path / "cache", 1, *api.OPTIONS) as served:
        tried = api.fuzz(served.root, 120, number=7)
    assert {label: one.faults for label, one in tried.items() if one.faults} == {}
    assert sum(one.n for one in tried.values()) >= 120 and all(one.n for one in tried.values())
    assert sum(one.n_good for one in tried.values()) >= api.MIN_GOOD * 120
    assert not any(one.statuses[500] for one in tried.values())
