"""What an answer took, from two states and the engine's figures."""

import dataclasses

from tests.unit.cli.states import FakeAnswer, cluster_state
from tpi.cli.statistics import COLUMNS, as_text, headline, measure, rows, summary


def test_bytes_are_counted_per_token_and_added_over_ranks() -> None:
    statistics = measure(cluster_state(3), cluster_state(3, grown_by=5), FakeAnswer())
    assert (statistics.disk_bytes, statistics.network_bytes) == (3000, 300)
    assert [rank.disk_bytes for rank in statistics.ranks] == [1000] * 3
    assert statistics.tokens_per_s == 2.0  # four tokens after the first in two seconds


def test_one_token_has_no_speed() -> None:
    statistics = measure(cluster_state(), cluster_state(), dataclasses.replace(FakeAnswer(), n_tokens=1))
    assert statistics.tokens_per_s is None
    assert "tokens/s" not in summary(statistics)


def test_no_token_divides_nothing_by_zero() -> None:
    answer = dataclasses.replace(FakeAnswer(), n_tokens=0, decode_s=0.0)
    assert measure(cluster_state(), cluster_state(2, grown_by=1), answer).disk_bytes == 2000


def test_a_rank_that_was_not_there_before_counts_from_zero() -> None:
    assert measure(cluster_state(1), cluster_state(2, grown_by=5), FakeAnswer()).ranks[1].disk_bytes == 1000


def test_the_lines_say_what_users_are_promised() -> None:
    statistics = measure(cluster_state(), cluster_state(2, grown_by=5), FakeAnswer())
    assert headline(statistics) == "7 prompt tokens, first token after 250 ms; 5 tokens, 2.0 tokens/s; seed 42"
    line = summary(statistics)
    for part in ("92 MB + 92 MB", "disk 2.0 kB", "network 200 B", "seed 42", "first after 250 ms"):
        assert part in line


def test_the_table_has_a_row_per_rank_and_a_cell_per_column() -> None:
    table = rows(measure(cluster_state(3), cluster_state(3), FakeAnswer()))
    assert [len(row) for row in table] == [len(COLUMNS)] * 3
    lines = as_text(COLUMNS, table)
    assert len(lines) == 4 and lines[1].index("device-0") == lines[0].index("device")
