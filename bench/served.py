"""A cluster of ``tpi serve`` and ``tpi join`` processes on emulated devices, driven like a user would.

The thread that makes a cluster drives it. Two threads read what the master writes, with the time.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from bench.children import PYTHON_PATH
from bench.testbed.testbed import SwitchStatistics, Testbed
from tpi.errors import LinkError

STAND_IN = ("bench.standins", "/dev/stdin")
"""The module and first argument of workers that compute nothing."""

_KEY = re.compile(r"^\s+tpi join (\S+)")
_HEADLINE = re.compile(r"^(\d+) prompt tokens.*; (\d+) tokens, ")
_READY = re.compile(r"^ready: ")
_START_S = 300.0
_ANSWER_S = 600.0
_END_S = 10.0


@dataclass(frozen=True)
class Line:
    """Something that the master wrote, and when: a line on standard error, or part of an answer."""

    at_s: float
    text: str
    is_answer: bool


@dataclass(frozen=True)
class ServedAnswer:
    """One answer, timed from outside. ``cpu_shares`` are the cores that each rank's process had meanwhile; ``prefill``
    is all that went through the ports until the first word."""

    n_prompt_tokens: int
    n_tokens: int
    first_s: float
    decode_s: float
    cpu_shares: tuple[float, ...]
    prefill: SwitchStatistics
    total: SwitchStatistics


class ServedCluster:
    """The processes; rank r runs on device r. A context manager.

    Raises:
        LinkError: a process ended or the cluster did not form; says what was written last.
    """

    def __init__(
        self,
        bed: Testbed,
        serve: Sequence[str],
        join: Sequence[Sequence[str]],
        variables: Sequence[Mapping[str, str]],
        worker: Sequence[str] = ("tpi", "join", "-"),
    ) -> None:
        """``serve`` and ``join`` (one per worker) are arguments after the verb; ``variables`` the environments.

        ``worker`` is the module that workers run and its first arguments; it gets the join key on standard input.
        """
        self._bed = bed
        self._written: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._last = ""
        self.processes: list[subprocess.Popen[Any]] = []
        master = self._start(0, ["tpi", "serve", *serve], variables[0])
        assert master.stdin is not None
        self._input: IO[bytes] = master.stdin
        for stream, is_answer in ((master.stdout, True), (master.stderr, False)):
            threading.Thread(target=self._read, args=(stream, is_answer), daemon=True).start()
        started = time.perf_counter()
        if join:
            key = self._wait_for(_KEY, _START_S)[1]
            for rank, arguments in enumerate(join, start=1):
                process = self._start(rank, [*worker, *arguments], variables[rank])
                assert process.stdin is not None
                process.stdin.write(key.encode() + b"\n")
                process.stdin.close()
        self._wait_for(_READY, _START_S)
        self.start_s = time.perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the master, and with it the workers; the testbed ends who does not."""
        if self.processes and self.processes[0].poll() is None:
            self.processes[0].send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def ask(self, text: str) -> ServedAnswer:
        """Asks one line and waits for the whole answer."""
        assert "\n" not in text
        self._bed.reset_statistics()
        asked, used = time.perf_counter(), self._cpu_times()
        self._input.write(text.encode() + b"\n")
        self._input.flush()
        times: list[float] = []
        prefill = None
        while True:
            line = self._next(asked + _ANSWER_S)
            if line.is_answer:
                times.append(line.at_s)
                prefill = prefill or self._bed.statistics()
            elif (match := _HEADLINE.match(line.text)) is not None and prefill is not None:
                break
        wall = time.perf_counter() - asked
        return ServedAnswer(
            n_prompt_tokens=int(match[1]),
            n_tokens=int(match[2]),
            first_s=times[0] - asked,
            decode_s=times[-1] - times[0],
            cpu_shares=tuple((after - before) / wall for before, after in zip(used, self._cpu_times(), strict=True)),
            prefill=prefill,
            total=self._bed.statistics(),
        )

    def _cpu_times(self) -> list[float]:
        """Seconds of processor time of every process, of the user and the kernel."""
        ticks = os.sysconf("SC_CLK_TCK")
        fields = [Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split() for p in self.processes]
        return [(int(field[11]) + int(field[12])) / ticks for field in fields]

    def _start(self, rank: int, arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[Any]:
        is_master = rank == 0
        process = self._bed.popen(
            rank,
            [sys.executable, "-m", *arguments],
            env={**os.environ, "PYTHONPATH": PYTHON_PATH, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if is_master else subprocess.DEVNULL,
            stderr=subprocess.PIPE if is_master else subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def _read(self, stream: IO[bytes], is_answer: bool) -> None:
        if is_answer:
            while data := os.read(stream.fileno(), 1 << 16):
                self._written.put(Line(time.perf_counter(), data.decode("utf-8", "replace"), True))
        else:
            for raw in stream:
                self._written.put(Line(time.perf_counter(), raw.decode("utf-8", "replace").rstrip("\n"), False))

    def _wait_for(self, pattern: re.Pattern[str], timeout_s: float) -> re.Match[str]:
        deadline = time.perf_counter() + timeout_s
        while True:
            match = pattern.match(self._next(deadline).text)
            if match is not None:
                return match

    def _next(self, deadline_s: float) -> Line:
        """The next thing that was written."""
        while True:
            try:
                line = self._written.get(timeout=0.5)
            except queue.Empty:
                ended = [rank for rank, process in enumerate(self.processes) if process.poll() is not None]
                if ended or time.perf_counter() > deadline_s:
                    why = f"the process of device {ended[0]} ended" if ended else "it took too long"
                    raise LinkError(f"the measured cluster failed: {why}; last words: {self._last}") from None
                continue
            if not line.is_answer and line.text.strip():
                self._last = line.text.strip()
            return line
