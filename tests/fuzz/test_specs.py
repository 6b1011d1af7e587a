"""A short run of the long one (``python -m tests.fuzz.specs``)."""

from tests.fuzz.specs import fuzz


def test_what_is_accepted_can_be_computed() -> None:
    outcome = fuzz(1500)
    assert outcome.crashes == []
    assert outcome.counts["computed"] > 50 and outcome.counts["refused"] > 500
