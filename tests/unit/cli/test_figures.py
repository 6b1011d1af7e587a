"""How numbers are written for people."""

import pytest

from tpi.cli.figures import duration, part, size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.0 kB"),
        (1500, "1.5 kB"),
        (163_400_000, "163 MB"),
        (4_812_000_000, "4.8 GB"),
        (9.96e15, "9960 TB"),
    ],
)
def test_sizes(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0.4 ms"), (0.85, "850 ms"), (2.44, "2.4 s"), (200.7, "3 min 20 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (0.0625, "6.2 %"), (0.25, "25 %"), (1, "100 %")])
def test_parts(share: float, text: str) -> None:
    assert part(share) == text
