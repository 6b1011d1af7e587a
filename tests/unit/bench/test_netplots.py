"""Pictures of the network's costs, of a small model on few devices: that they are measured and drawn."""

import json
from pathlib import Path

import pytest

from bench import netplots
from bench.bounds import bound_s, compare
from bench.shapes import SHAPES, Shape, find_shape
from bench.testbed.testbed import can_emulate

SMALL = Shape("small", 4, 512, 8, 4, 2048, 2000, 512)


@pytest.mark.skipif(can_emulate() is not None, reason=str(can_emulate()))
def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    options = ["--shape", "small", "--devices", "1,2", "--tokens", "40", "--answers", "1", "--latencies", "1"]
    reports = list(netplots.main([*options, "--ranks", "2", "--work", str(tmp_path), "--out", str(tmp_path / "out")]))
    for name in ("sums-against-latency", "tokens-against-devices"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / "out" / f"{name}.svg").read_text()[-20:]
    sums = [figures for report in reports if (figures := json.loads(report.json()))["bench"] == "allreduce"]
    assert len(sums) == 5 and all(entry["ratio"] > 1 for entry in sums)


def test_bounds_are_those_of_the_formulas() -> None:
    assert bound_s("one-shot", 4, 4096, 0.001, 300e6) == pytest.approx(0.00133, rel=0.01)
    assert bound_s("two-shot", 8, 8192, 0.001, 300e6) == pytest.approx(0.00238, rel=0.01)
    one = {"time_to_first_token_s": 4.0, "prompt_tokens": 64, "decode_tokens_per_s": 10.0}
    four = {"time_to_first_token_s": 2.0, "decode_tokens_per_s": 8.0, "devices": 4, "prompt_tokens": 64}
    link = {"latency_ms": 1.0, "mbps": 300.0, "wire": "f16", "algorithm": "one-shot"}
    found = compare(one, {**four, **link}, find_shape("tinyllama-1.1b"), is_cut=True)
    assert found["decode_speedup"] == 0.8 and found["prefill_speedup"] == 2.0
    assert found["token_bound_ms"] == pytest.approx(100 / 4 + 44 * 1.33, rel=0.01)
    assert found["decode_over_bound"] == pytest.approx(125 / found["token_bound_ms"])
    prompt_sum_s = bound_s("two-shot", 4, 64 * 2048 * 2, 0.001, 300e6)
    assert found["first_token_bound_s"] == pytest.approx(max(4.0 / 4, 44 * prompt_sum_s))
    assert "decode_over_bound" not in compare(one, {**four, **link}, find_shape("tinyllama-1.1b"), is_cut=False)
