"""Reads, from the kernel and from outside, the most memory that processes have occupied while they ran."""

import contextlib
import threading
from pathlib import Path
from typing import Self

_PERIOD_S = 0.005


class PeakWatch:
    """Follows a process and its children until ``close``. A context manager; one thread.

    VmHWM only grows, so the last value that is seen before a process ends is its peak but for the last 5 ms. What a
    child occupied before it became another program is not counted: it is its parent's memory.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peaks: dict[int, int] = {}
        self._programs: dict[int, bytes] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peaks", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    @property
    def master_bytes(self) -> int:
        """The peak of the process itself."""
        return self._peaks.get(self._pid, 0)

    @property
    def worker_bytes(self) -> list[int]:
        """The peaks of its children that are ranks."""
        return [
            peak
            for pid, peak in self._peaks.items()
            if pid != self._pid and b"\0join\0" in self._programs.get(pid, b"")
        ]

    def _watch(self) -> None:
        while not self._done.wait(_PERIOD_S):
            for pid in (self._pid, *_children(self._pid)):
                program = _read(f"/proc/{pid}/cmdline")
                if program and program != self._programs.get(pid):
                    self._programs[pid] = program
                    self._peaks.pop(pid, None)
                peak = peak_of(pid)
                if peak:
                    self._peaks[pid] = max(peak, self._peaks.get(pid, 0))


def peak_of(pid: int) -> int:
    """VmHWM of a process in bytes; 0 if there is no such process."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _children(pid: int) -> list[int]:
    return [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]


def _read(path: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(path).read_bytes()
    return b""
