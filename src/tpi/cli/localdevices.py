"""The other ranks of a cluster on one machine: child processes that always end with this one.

Each child reads the join key from a pipe on its standard input and ends when that pipe closes, which the kernel does
even for a process that is killed. What a child says goes to an unnamed file. Main thread.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tpi.config import Resources
from tpi.errors import LinkError, ProcessError

_END_S = 5.0
_TERMINATE_S = 3.0
_MAX_LOG_BYTES = 4096
_AT_ONCE = 8
"""So many children start at the same time: more would keep each other from joining within the port's time limits."""


class LocalDevices:
    """Starts ``n`` workers for the master with this join key, each allowed ``resources``; ends them in ``close``.

    Args:
        folder: where each keeps its certificate; the caller removes it afterwards.
        variables: the children's environment.
        command: what starts a worker; tests put something else in its place.
    """

    def __init__(
        self,
        n: int,
        join_key: str,
        resources: Resources,
        folder: Path,
        variables: Mapping[str, str],
        command: Sequence[str] = (sys.executable, "-P", "-m", "tpi", "join", "-", "--while-stdin"),
    ) -> None:
        self._n, self._join_key, self._resources, self._folder = n, join_key, resources, folder
        self._variables, self._command = variables, command
        self._children: list[_Child] = []
        self.start_more(0)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.process.pid for child in self._children)

    def start_more(self, n_joined: int) -> None:
        """Starts children that are still missing, now that ``n_joined`` of the others have joined.

        Raises:
            ProcessError: the system has no room for one more; all are ended then.
        """
        try:
            while len(self._children) < min(self._n, n_joined + _AT_ONCE):
                name, folder = f"local-{len(self._children) + 1}", self._folder / f"device-{len(self._children) + 1}"
                child = _Child(name, [*self._command, *_options(self._resources, name, folder)], self._variables)
                self._children.append(child)
                child.send(self._join_key)
        except OSError as error:
            self.close()
            raise ProcessError(f"cannot start {self._n} more processes on this machine: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raises ProcessError, with the last words of a child that has ended."""
        for child in self._children:
            if child.process.poll() is not None:
                raise ProcessError(f"the process of {child.name} ended: {child.last_words()}")

    def explain(self, wait_s: float = 0.5) -> LinkError | None:
        """Why a child has ended by itself, if one does so within ``wait_s``; for when a link broke."""
        deadline_s = time.monotonic() + wait_s
        while True:
            for child in self._children:
                if child.process.poll() not in (None, 0):
                    return ProcessError(f"the process of {child.name} ended: {child.last_words()}")
            if not self._children or time.monotonic() >= deadline_s:
                return None
            time.sleep(0.02)

    def close(self) -> None:
        """Ends all children, blocking for some seconds at most; may be called again."""
        for child in self._children:
            child.hang_up()
        for signal_s, end in ((_END_S, subprocess.Popen.terminate), (_TERMINATE_S, subprocess.Popen.kill)):
            deadline_s = time.monotonic() + signal_s
            for child in self._children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, deadline_s - time.monotonic()))
            for child in self._children:
                if child.process.poll() is None:
                    end(child.process)
        for child in self._children:
            child.process.wait()
            child.log.close()
        self._children = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Child:
    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self.name = name
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        try:
            # A session of its own: Ctrl-C is for the master, who says goodbye to its workers.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=self.log,
                env=dict(variables),
                start_new_session=True,
            )
        except BaseException:
            self.log.close()
            raise

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: check() says why
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def last_words(self) -> str:
        size = os.fstat(self.log.fileno()).st_size
        start = max(0, size - _MAX_LOG_BYTES)
        self.log.seek(start)
        lines = self.log.read(_MAX_LOG_BYTES).decode("utf-8", "replace").strip().splitlines()
        status = self.process.returncode
        if status is not None and status < 0:
            why = " (out of memory?)" if status == -9 else ""
            return f"killed by signal {-status}{why}"
        return lines[-1].removeprefix("tpi: ") if lines else f"exit status {status}"


def _options(resources: Resources, name: str, folder: Path) -> list[str]:
    options = ["--name", name, "--state", str(folder), "--threads", str(resources.n_threads)]
    if resources.memory_bytes is not None:
        options += ["--memory", str(resources.memory_bytes)]
    if resources.window_bytes is not None:
        options += ["--window", str(resources.window_bytes)]
    if not resources.repack:
        options.append("--no-repack")
    return options
