"""A short product tells how fast this process computes, and leaves nothing behind."""

from pathlib import Path

import pytest

from tests.unit.runtime.rigs import make_model
from tpi.gguf.types import TYPES_BY_NAME
from tpi.observe import resident_bytes
from tpi.runtime.ggml import speed
from tpi.runtime.ggml.probe import REPACKED, KernelReport
from tpi.runtime.ggml.speed import main_type, try_flop_per_s


@pytest.fixture(autouse=True)
def all_kernels_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "probe_kernels", lambda cache: KernelReport({}))


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("repack", [False, True])
def test_it_measures(tmp_path: Path, kind: str, repack: bool) -> None:
    assert 1e7 < try_flop_per_s(TYPES_BY_NAME[kind], 2, repack, tmp_path) < 1e15


def test_nothing_stays_in_memory(tmp_path: Path) -> None:
    kind = TYPES_BY_NAME["Q4_0"]
    try_flop_per_s(kind, 1, True, tmp_path)
    before = resident_bytes()
    for _ in range(5):
        try_flop_per_s(kind, 1, True, tmp_path)
    assert resident_bytes() - before < 1_000_000


def test_kernels_that_crash_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = TYPES_BY_NAME["Q4_0"]
    monkeypatch.setattr(speed, "probe_kernels", lambda cache: KernelReport({"Q4_0": "crashes"}))
    assert try_flop_per_s(kind, 1, True, tmp_path) == 0.0
    monkeypatch.setattr(speed, "probe_kernels", lambda cache: KernelReport({REPACKED + "Q4_0": "crashes"}))
    monkeypatch.setattr(speed, "Repacker", None)
    assert try_flop_per_s(kind, 1, True, tmp_path) > 0


def test_the_type_is_that_of_most_bytes(tmp_path: Path) -> None:
    _, model = make_model(tmp_path / "model.gguf")
    assert main_type(model.pieces).name == "F16"
    assert main_type(()).name == "Q4_0"
