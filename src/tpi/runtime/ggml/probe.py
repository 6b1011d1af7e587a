"""Tries every kernel in a child process, once for each library and CPU, so that a crash is an error and no crash.

A library that was compiled badly, or for another CPU, does not report anything: it ends the process by a signal. What
each kernel is tried with stands in ``probe_child``. The report is kept in a cache folder. Any thread; blocks for
about a second the first time.
"""

import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import KernelError
from tpi.gguf.types import TYPES_BY_NAME
from tpi.native.libraries import library_path

ATTENTION = "attention"
CACHED = "attention:"
"""Before a type's name: flash attention over a KV cache of that type."""
REPACKED = "repacked:"
"""Before a type's name: its matrix product with rearranged weights."""
CASES = (ATTENTION, CACHED + "Q8_0", CACHED + "Q4_0", *TYPES_BY_NAME, *(REPACKED + name for name in TYPES_BY_NAME))
"""Everything that is tried: flash attention over a cache of 16-bit floats and over a quantised one, the matrix product
of every data type, and with rearranged weights."""

REMEDY = "compile the kernels again with 'make kernels'"
_FORMAT = 2
_TIMEOUT_S = 60


@dataclass(frozen=True)
class ChildResult:
    """How a child ended: its exit status (negative: the signal; None: it had to be ended) and what it wrote."""

    status: int | None
    output: str
    errors: str


RunChild = Callable[[Sequence[str]], ChildResult]
"""Runs a child that tries the named cases in order; blocks until it ends."""


@dataclass(frozen=True)
class KernelReport:
    """Which kernels cannot be used, and why; all others gave right results."""

    failures: Mapping[str, str]

    def require(self, type_names: Iterable[str], kv_type: str = "F16") -> None:
        """Checks that attention over a KV cache of ``kv_type`` and the products of these data types can be used.

        Raises:
            KernelError: one of them crashes or computes wrong results.
        """
        cached = {} if kv_type == "F16" else {CACHED + kv_type: f"attention over a {kv_type} KV cache"}
        needed = {ATTENTION: "attention", **cached, **{name: f"{name} weights" for name in type_names}}
        for case, what in needed.items():
            if case in self.failures:
                raise KernelError(f"the kernel for {what} {self.failures[case]} on this CPU: {REMEDY}")

    def allows_repacked(self, type_names: Iterable[str]) -> bool:
        """Whether the products of all these types are right with rearranged weights, where they can be rearranged."""
        return not any(REPACKED + name in self.failures for name in type_names)


def probe_kernels(cache: Path, run_child: RunChild | None = None) -> KernelReport:
    """Tries all kernels, or reads the report of an earlier time from the folder ``cache``.

    A folder that cannot be written costs the probe at every start, nothing else.

    Raises:
        KernelError: the libraries are missing, or the child fails before it tries the first kernel.
    """
    file = cache / f"kernels-{kernels_key()}.json"
    known = _read(file)
    if known is not None:
        return known
    report = KernelReport(_find_failures(run_child or _run_child))
    _write(file, report)
    return report


def kernels_key() -> str:
    """Changes with the library files, the CPU and what is tried."""
    facts: list[object] = [_FORMAT, CASES, platform.machine(), _cpu_features()]
    for name in ("ggml-base", "ggml-cpu"):
        path = library_path(name)
        status = path.stat()
        facts.append((str(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _read(file: Path) -> KernelReport | None:
    try:
        failures = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if isinstance(failures, dict) and all(isinstance(reason, str) for reason in failures.values()):
        return KernelReport(failures)
    return None


def _write(file: Path, report: KernelReport) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dict(report.failures)))
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _find_failures(run_child: RunChild) -> dict[str, str]:
    """Runs children until every case was tried: one that crashes is left out of the next child's."""
    failures: dict[str, str] = {}
    waiting = list(CASES)
    while waiting:
        result = run_child(waiting)
        tried, wrong = _parse(result.output, waiting)
        failures |= dict.fromkeys(wrong, "computes wrong results")
        if result.status == 0:
            return failures
        if not tried:
            reason = (result.errors.strip().splitlines() or [_describe(result.status)])[-1]
            raise KernelError(f"the kernels cannot be tried ({reason}): {REMEDY}")
        failures[tried[-1]] = _describe(result.status)
        waiting = waiting[len(tried) :]
    return failures


def _parse(output: str, expected: Sequence[str]) -> tuple[Sequence[str], Collection[str]]:
    """The cases that the child began, and those of them that it found wrong."""
    words = [line.split() for line in output.splitlines()]
    begun = [line[1] for line in words if line[:1] == ["try"]]
    wrong = [line[1] for line in words if line[:1] == ["wrong"]]
    return expected[: len(begun)], wrong


def _describe(status: int | None) -> str:
    if status is None:
        return f"does not end within {_TIMEOUT_S} seconds"
    if status < 0:
        try:
            return f"crashes ({signal.Signals(-status).name})"
        except ValueError:
            return f"crashes (signal {-status})"
    return f"fails (exit status {status})"


def _run_child(cases: Sequence[str]) -> ChildResult:
    command = [sys.executable, "-P", "-m", "tpi.runtime.ggml.probe_child"]
    try:
        done = subprocess.run(
            command, input=" ".join(cases), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return ChildResult(None, output, "")
    return ChildResult(done.returncode, done.stdout, done.stderr)
