"""A cluster of ``tpi serve`` and its workers' processes on emulated devices, driven like a user would.

The thread that makes a cluster drives it. Two threads read what the master writes, with the time.
"""

import contextlib
import json
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
from typing import IO, Any, Protocol, Self

import msgspec

from bench.callers import Crowd
from bench.children import PYTHON_PATH, last_words, module_variables
from bench.testbed.testbed import SwitchStatistics
from tpi.cli.environment import find_status_folder
from tpi.cli.statussocket import ask, choose_master
from tpi.cluster.reports import ClusterStatus
from tpi.errors import LinkError

_KEY_FILE = re.compile(r"^the join key is in (.+) \(")
_HEADLINE = re.compile(r"^(\d+) prompt tokens.*; (\d+) tokens, ")
_JOINED = re.compile(r"^(?:.* )?(\d+) of \1 devices are here")
_API = re.compile(r"^the API is at http://127\.0\.0\.1:(\d+)/")
_READY = re.compile(r"^ready: [^;]*(?:; (.*))?$")
_START_S = 300.0
_ANSWER_S = 7200.0
_END_S = 10.0


class Bed(Protocol):
    """Where the processes run: an emulated network, or loopback. See ``Testbed``."""

    def address(self, rank: int) -> str: ...

    def popen(
        self, rank: int, argv: Sequence[str], *, is_limited: bool = True, **options: Any
    ) -> subprocess.Popen[Any]: ...

    def statistics(self) -> SwitchStatistics: ...

    def reset_statistics(self) -> None: ...


@dataclass(frozen=True)
class Worker:
    """A worker's process: the module that it runs and its arguments; it gets the join key on standard input.

    One that ``is_early`` is started before the master and writes a line when it waits for the key, so that its start
    does not count as the cluster's.
    """

    command: tuple[str, ...]
    is_early: bool = False


def real_worker(*options: str) -> Worker:
    """``tpi join`` with ``options``."""
    return Worker(("tpi", "join", "-", *options))


def stand_in(name: str, state: Path, computing: Path | None = None) -> Worker:
    """One that computes nothing, and keeps its certificate in ``state``; it waits as long as ``computing`` says."""
    options = ["--state", str(state), *(["--computing", str(computing)] if computing is not None else [])]
    return Worker(("bench.standins", *options, "/dev/stdin", name), is_early=True)


@dataclass(frozen=True)
class Start:
    """Seconds from the start of the master's process until it listened, had all its workers, and was ready."""

    listening_s: float
    joined_s: float
    ready_s: float
    sums: str = ""
    """How the cluster adds up, in its words."""


@dataclass(frozen=True)
class Line:
    """Something that the master wrote, and when: a line on standard error, or part of an answer."""

    at_s: float
    text: str
    is_answer: bool


@dataclass(frozen=True)
class ServedAnswer:
    """One answer, timed from outside. ``cpu_s`` is the processor time that each rank's process had meanwhile;
    ``prefill`` is all that went through the ports until the first word."""

    n_prompt_tokens: int
    n_tokens: int
    first_s: float
    decode_s: float
    wall_s: float
    cpu_s: tuple[float, ...]
    prefill: SwitchStatistics
    total: SwitchStatistics


class ServedCluster:
    """The processes; rank r runs on device r. A context manager.

    Raises:
        LinkError: a process ended or the cluster did not form; says what was written last.
    """

    def __init__(
        self,
        bed: Bed,
        serve: Sequence[str],
        workers: Sequence[Worker],
        variables: Sequence[Mapping[str, str]],
        *,
        is_plain: bool = False,
        n_parallel: int = 0,
    ) -> None:
        """``serve`` are the arguments after the verb; ``workers`` those of ranks 1 on; ``variables`` every device's
        environment. With ``is_plain`` data links are not encrypted (``bench.plainlinks``). ``n_parallel``: so many
        are answered at once, through the API, in place of standard input."""
        self._is_plain = is_plain
        self._bed = bed
        self._written: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._last = ""
        self._running: dict[int, subprocess.Popen[Any]] = {}
        self._variables = variables
        for rank, worker in enumerate(workers, start=1):
            if worker.is_early:
                self._start(rank, worker.command, stdout=subprocess.PIPE)
        for rank, process in self._running.items():
            assert process.stdout is not None
            with process.stdout as said:
                if not said.readline():
                    raise LinkError(f"the measured cluster failed: the process of device {rank} did not start")
        started = time.perf_counter()
        api = ("--api-port", "0", "--parallel", str(n_parallel)) if n_parallel else ("--no-api",)
        master = self._start(0, ("tpi", "serve", *api, *serve), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert master.stdin is not None
        self._input: IO[bytes] = master.stdin
        for stream, is_answer in ((master.stdout, True), (master.stderr, False)):
            threading.Thread(target=self._read, args=(stream, is_answer), daemon=True).start()
        self.start = self._bring(workers, started)
        self._api_port = int(self._wait_for(_API, _START_S)[1]) if n_parallel else 0

    def _bring(self, workers: Sequence[Worker], started: float) -> Start:
        """Gives every worker the join key and waits until the cluster is ready."""
        listening = joined = 0.0
        if workers:
            key = Path(self._wait_for(_KEY_FILE, _START_S)[1]).read_text().strip()
            listening = time.perf_counter() - started
            for rank, worker in enumerate(workers, start=1):
                process = self._running.get(rank) or self._start(rank, worker.command)
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it ended: waiting says so
                    process.stdin.write(key.encode() + b"\n")
                    process.stdin.close()
            self._wait_for(_JOINED, _START_S)
            joined = time.perf_counter() - started
        sums = self._wait_for(_READY, _START_S)[1] or ""
        return Start(listening, joined, time.perf_counter() - started, sums)

    @property
    def api_port(self) -> int:
        """Where the API is; 0: nowhere."""
        return self._api_port

    @property
    def processes(self) -> list[subprocess.Popen[Any]]:
        """By rank."""
        return [self._running[rank] for rank in sorted(self._running)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the master, and with it the workers; the testbed ends who does not."""
        self._running[0].send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def status(self) -> ClusterStatus:
        """What ``tpi status`` would print."""
        return ask(choose_master(find_status_folder({**os.environ, **self._variables[0]})))

    def ask(self, text: str) -> ServedAnswer:
        """Asks one line and waits for the whole answer.

        Raises:
            LinkError: the cluster failed, or answered nothing.
        """
        assert "\n" not in text
        self._bed.reset_statistics()
        asked, used = time.perf_counter(), self._cpu_times()
        self._input.write(text.encode() + b"\n")
        self._input.flush()
        times: list[float] = []
        prefill = match = None
        while prefill is None or match is None:  # two threads read them
            line = self._next(asked + _ANSWER_S)
            if line.is_answer:
                times.append(line.at_s)
                prefill = prefill or self._bed.statistics()
            elif (match := match or _HEADLINE.match(line.text)) is not None and match[2] == "0":
                raise LinkError("the measured cluster's answer ended before its first token: take another prompt")
        return ServedAnswer(
            n_prompt_tokens=int(match[1]),
            n_tokens=int(match[2]),
            first_s=times[0] - asked,
            decode_s=times[-1] - times[0],
            wall_s=time.perf_counter() - asked,
            cpu_s=tuple(after - before for before, after in zip(used, self._cpu_times(), strict=True)),
            prefill=prefill,
            total=self._bed.statistics(),
        )

    def ask_many(self, texts: Sequence[str], n_tokens: int) -> Crowd:
        """Asks all at once through the API, each for ``n_tokens``, from beside the master.

        Raises:
            LinkError: the cluster failed.
        """
        callers = self._bed.popen(
            0,
            [sys.executable, "-m", "bench.callers", str(self._api_port), str(n_tokens)],
            is_limited=False,
            env=module_variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, errors = callers.communicate(json.dumps(list(texts)).encode())
        if callers.returncode:
            raise LinkError(f"the measured cluster failed: {last_words(errors.decode())}")
        return msgspec.json.decode(out, type=Crowd)

    def _cpu_times(self) -> list[float]:
        """Seconds of processor time of every process, of the user and the kernel."""
        ticks = os.sysconf("SC_CLK_TCK")
        fields = [Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split() for p in self.processes]
        return [(int(field[11]) + int(field[12])) / ticks for field in fields]

    def _start(
        self, rank: int, command: Sequence[str], stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
    ) -> subprocess.Popen[Any]:
        process = self._bed.popen(
            rank,
            [sys.executable, "-m", *(["bench.plainlinks"] if self._is_plain else []), *command],
            env={**os.environ, "PYTHONPATH": PYTHON_PATH, **self._variables[rank]},
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
        )
        self._running[rank] = process
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
                ended = [rank for rank, process in self._running.items() if process.poll() is not None]
                if ended or time.perf_counter() > deadline_s:
                    why = f"the process of device {ended[0]} ended" if ended else "it took too long"
                    raise LinkError(f"the measured cluster failed: {why}; last words: {self._last}") from None
                continue
            if not line.is_answer and line.text.strip():
                self._last = line.text.strip()
            return line
