"""What measurements print, and the dispatcher."""

import json

import pytest

from bench.__main__ import main
from bench.report import Report, markdown


def test_report_is_a_json_line_and_a_table() -> None:
    report = Report("window").add(peak_rss_bytes=163_000_000, rate_ratio=0.9712345678, is_direct=True, note=None)
    assert json.loads(report.json()) == {
        "bench": "window", "peak_rss_bytes": 163_000_000, "rate_ratio": 0.971235, "is_direct": True, "note": None,
    }  # fmt: skip
    assert markdown([report, Report("window").add(peak_rss_bytes=1)]).splitlines() == [
        "| peak_rss_bytes | rate_ratio | is_direct | note |",
        "| --- | --- | --- | --- |",
        "| 163,000,000 | 0.971235 | yes | - |",
        "| 1 | - | - | - |",
    ]


def test_unknown_measurements_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("bench: there is no measurement 'nothing'")


def test_json_prints_one_line_only(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{tmp_path}/model.gguf"
    assert main(["models", "--json", "--shape", "tinyllama-1.1b", "--quant", "q2_k", "--hollow", "--out", out]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == out
