"""A short run of the long one (``python -m tests.fuzz.folders``)."""

from tests.fuzz.folders import fuzz


def test_hostile_folders_are_read_or_refused() -> None:
    outcome = fuzz(150)
    assert outcome.crashes == []
    assert outcome.counts["read"] > 20 and outcome.counts["refused"] > 40
