"""The list of what is to be reached, and how a figure is held against its limit."""

import json
from collections.abc import Iterator, Sequence

import pytest

from bench import versus
from bench.reach import GOALS, NAMES, main, report_of
from bench.report import Report
from tpi.errors import UsageError


def test_limits_are_held() -> None:
    at_most, at_least = NAMES["worker"], NAMES["decode"]
    assert at_most.is_reached(250e6) and not at_most.is_reached(250e6 + 1)
    assert at_least.is_reached(0.98) and not at_least.is_reached(0.979)
    report = json.loads(report_of(at_least, {"rate_ratio": 0.5}).json())
    assert (report["found"], report["limit"], report["is_reached"]) == (0.5, ">= 0.98", False)
    assert report["command"] == "python -m bench decode --threads 2"


def test_of_several_reports_the_worst_that_fits_counts() -> None:
    found = [
        {"devices": 2, "prefill_speedup": 1.0},
        {"devices": 4, "prefill_speedup": 2.5},
        {"devices": 4, "prefill_speedup": 1.9},
    ]
    goal = NAMES["prompt-64"]
    assert goal.find(found) is found[2] and not goal.is_reached(found[2]["prefill_speedup"])
    with pytest.raises(UsageError, match="reported nothing with"):
        goal.find(found[:1])


def test_names_are_unique_and_unknown_ones_refused() -> None:
    assert len(NAMES) == len(GOALS)
    with pytest.raises(UsageError, match="--only speed: there are worker, "):
        next(main(["--only", "speed"]))


def test_figures_of_one_command_come_from_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def decode(arguments: Sequence[str]) -> Iterator[Report]:
        runs.append(arguments)
        yield Report("decode").add(rate_ratio=1.0, outside_kernels_share=0.5)

    monkeypatch.setattr(versus, "decode", decode)
    found = [json.loads(report.json()) for report in main(["--only", "decode,python"])]
    assert len(runs) == 1
    assert [(row["name"], row["found"], row["is_reached"]) for row in found] == [
        ("decode", 1.0, True),
        ("python", 0.5, False),
    ]
