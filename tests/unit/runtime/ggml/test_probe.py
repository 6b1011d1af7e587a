"""The probe of the kernels: right kernels pass, crashes and wrong results are found, named, and remembered."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tpi.errors import KernelError
from tpi.gguf.types import TYPES_BY_NAME
from tpi.runtime.ggml import probe, probe_child
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.probe import ATTENTION, CACHED, CASES, ChildResult, KernelReport, probe_kernels


class FakeChild:
    """A child whose kernels crash, or compute nonsense, for some of the cases."""

    def __init__(self, crashes: Sequence[str] = (), wrong: Sequence[str] = (), status: int | None = -11) -> None:
        self.crashes, self.wrong, self.status = crashes, wrong, status
        self.calls: list[list[str]] = []

    def __call__(self, cases: Sequence[str]) -> ChildResult:
        self.calls.append(list(cases))
        output = ""
        for case in cases:
            output += f"try {case}\n"
            if case in self.crashes:
                return ChildResult(self.status, output, "")
            if case in self.wrong:
                output += f"wrong {case}\n"
        return ChildResult(0, output, "")


def test_the_kernels_of_this_machine_are_right(tmp_path: Path) -> None:
    report = probe_kernels(tmp_path)
    assert report.failures == {}
    report.require(TYPES_BY_NAME, "Q8_0")


def test_the_report_is_kept(tmp_path: Path) -> None:
    child = FakeChild(crashes=["Q4_K"])
    first = probe_kernels(tmp_path, child)
    second = probe_kernels(tmp_path, child)
    assert first == second
    assert len(child.calls) == 2  # both by the first: the crashed case, then the rest
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


def test_a_crash_is_named_and_the_rest_is_tried(tmp_path: Path) -> None:
    child = FakeChild(crashes=["F16", CASES[-1]], wrong=["Q8_0"])
    report = probe_kernels(tmp_path, child)
    assert report.failures == {
        "F16": "crashes (SIGSEGV)",
        CASES[-1]: "crashes (SIGSEGV)",
        "Q8_0": "computes wrong results",
    }
    assert [cases[0] for cases in child.calls] == [CASES[0], CASES[CASES.index("F16") + 1]]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (-4, "crashes (SIGILL)"),
        (-200, "crashes (signal 200)"),
        (3, "fails (exit status 3)"),
        (None, "does not end within 60 seconds"),
    ],
)
def test_the_reason_of_a_failure(tmp_path: Path, status: int | None, reason: str) -> None:
    assert probe_kernels(tmp_path, FakeChild(["Q4_0"], status=status)).failures == {"Q4_0": reason}


def test_only_what_a_model_needs_is_demanded() -> None:
    report = KernelReport({"Q4_K": "crashes (SIGSEGV)"})
    report.require(["F32", "Q4_0"])
    with pytest.raises(KernelError) as caught:
        report.require(["F32", "Q4_K"])
    expected = (
        "the kernel for Q4_K weights crashes (SIGSEGV) on this CPU: compile the kernels again with 'make kernels'"
    )
    assert str(caught.value) == expected
    with pytest.raises(KernelError, match="the kernel for attention computes wrong results"):
        KernelReport({ATTENTION: "computes wrong results"}).require([])


def test_only_who_wants_a_quantised_cache_demands_it() -> None:
    report = KernelReport({CACHED + "Q8_0": "computes wrong results"})
    report.require(["F32"])
    report.require(["F32"], "F16")
    with pytest.raises(KernelError) as caught:
        report.require(["F32"], "Q8_0")
    expected = (
        "the kernel for attention over a Q8_0 KV cache computes wrong results on this CPU: "
        "compile the kernels again with 'make kernels'"
    )
    assert str(caught.value) == expected


def test_a_child_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    def broken(cases: Sequence[str]) -> ChildResult:
        return ChildResult(1, "", "Traceback\nImportError: no libggml\n")

    with pytest.raises(KernelError, match=r"cannot be tried \(ImportError: no libggml\)"):
        probe_kernels(tmp_path, broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "[]", '{"F32": 1}', "\0"])
def test_a_damaged_report_is_made_anew(tmp_path: Path, damage: str) -> None:
    probe_kernels(tmp_path, FakeChild())
    [file] = tmp_path.iterdir()
    file.write_text(damage)
    child = FakeChild(crashes=["F16"])
    assert probe_kernels(tmp_path, child).failures and child.calls
    assert probe_kernels(tmp_path, FakeChild()).failures


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert probe_kernels(tmp_path / "file" / "cache", FakeChild()).failures == {}


def test_another_library_is_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    library.write_text("first")
    monkeypatch.setattr(probe, "library_path", lambda name: library)
    child = FakeChild()
    probe_kernels(tmp_path, child)
    os.utime(library, ns=(1, 1))
    probe_kernels(tmp_path, child)
    library.write_text("the second")
    probe_kernels(tmp_path, child)
    assert len(child.calls) == 3


def test_a_real_crash_ends_only_the_child(tmp_path: Path) -> None:
    program = "import os; print('try', 'attention', flush=True); os.kill(os.getpid(), 11)"

    def crash(cases: Sequence[str]) -> ChildResult:
        if cases[0] != ATTENTION:
            return ChildResult(0, "", "")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        return ChildResult(done.returncode, done.stdout, done.stderr)

    assert probe_kernels(tmp_path, crash).failures == {ATTENTION: f"crashes ({signal.SIGSEGV.name})"}


def test_wrong_values_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., probe_child._Array] = probe_child.dequantise
    monkeypatch.setattr(probe_child, "dequantise", lambda *arguments: np.roll(right(*arguments), 1, axis=1))
    with Compute(1) as compute:
        wrong = [name for name, kind in TYPES_BY_NAME.items() if not probe_child.try_product(compute, kind)]
    assert wrong == list(TYPES_BY_NAME)


def test_what_a_cache_keeps_is_right_within_its_rounding() -> None:
    values = np.random.default_rng(1).standard_normal((8, 64), dtype=np.float32)
    steps = np.abs(values.reshape(8, 2, 32)).max(axis=-1, keepdims=True) / 127
    kept = (np.round(values.reshape(8, 2, 32) / steps) * steps).reshape(8, 64)
    q8_0 = TYPES_BY_NAME["Q8_0"]
    assert probe_child.keeps(q8_0, kept, values)
    assert not probe_child.keeps(q8_0, kept + steps.max(), values)
    assert not probe_child.keeps(q8_0, np.roll(kept, 1, axis=0), values)
    assert not probe_child.keeps(TYPES_BY_NAME["F16"], kept, values)
    assert probe_child.keeps(TYPES_BY_NAME["F16"], values.astype(np.float16).astype(np.float32), values)


@pytest.mark.parametrize("case", [ATTENTION, CACHED + "Q8_0", CACHED + "Q4_0"])
@pytest.mark.parametrize("what", ["dequantise", "attended"])
def test_wrong_cells_and_wrong_attention_are_noticed(monkeypatch: pytest.MonkeyPatch, case: str, what: str) -> None:
    right: Callable[..., probe_child._Array] = getattr(probe_child, what)
    with Compute(1) as compute:
        assert probe_child.try_case(compute, case)
        monkeypatch.setattr(probe_child, what, lambda *arguments: np.roll(right(*arguments), 1, axis=0))
        assert not probe_child.try_case(compute, case)


def test_values_that_are_not_finite_are_wrong() -> None:
    ones = np.ones(3, dtype=np.float32)
    assert probe_child.agrees(ones * 1.01, ones, ones)
    assert not probe_child.agrees(ones * 1.03, ones, ones)
    assert not probe_child.agrees(np.array([1, np.nan, 1], dtype=np.float32), ones, ones)
