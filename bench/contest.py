"""Starts and drives processes of ``bench.contender``, here or on an emulated device. The caller's thread."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Self

import msgspec

from bench.children import module_variables
from bench.contender import Setup, Task, Took
from tpi.errors import TpiError

_END_S = 10.0


class Contender:
    """A process of ``bench.contender``, started by ``popen``. A context manager.

    Raises:
        TpiError: it ends, e.g. because its kernels crash.
    """

    def __init__(self, setup: Setup, popen: Callable[..., "subprocess.Popen[str]"] = subprocess.Popen) -> None:
        self.kind = setup.kind
        variables = module_variables()
        command = [sys.executable, "-m", "bench.contender", msgspec.json.encode(setup).decode()]
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        self._process = popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, text=True
        )
        self._read_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._words.close()

    def perform(self, task: Task) -> Took:
        """Blocks until the task is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(task).decode() + "\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._read_line(), type=Took)

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise TpiError(f"the process of {self.kind} ended with {code}; last words: {self._last_words()}")
        return line

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "none"
