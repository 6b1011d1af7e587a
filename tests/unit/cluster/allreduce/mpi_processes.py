"""Ranks that are processes of an ``mpiexec``, told by the tests' process what to add up. Called by tests only.

``python -m tests.unit.cluster.allreduce.mpi_processes SOCKET`` is such a rank.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.arithmetic import make_arithmetic
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.mpi import Mpi
from tpi.cluster.allreduce.mpiworld import MpiWorld
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.mesh.mesh import Mesh
from tpi.model.flow import Flow
from tpi.runtime.protocols import Float32Array, NativeSum, SumStep
from tpi.testing.allreduce_suite import MAX_VALUES

_END_S = 15.0


def find_mpiexec() -> str | None:
    """That of the tests' environment, or the system's."""
    return shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def mpi_command(mpiexec: str, n: int) -> list[str]:
    """What starts ``n`` processes, also as root and where there are fewer cores."""
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False).stdout
    is_open_mpi = "Open MPI" in version or "OpenRTE" in version
    return [mpiexec, *(["--allow-run-as-root", "--oversubscribe"] if is_open_mpi else []), "-n", str(n)]


class MpiProcesses:
    """``n`` ranks. A context manager that ends them."""

    def __init__(self, mpiexec: str, n: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = str(Path(self._folder.name) / "socket")
        command = [*mpi_command(mpiexec, n), sys.executable, "-P", "-m", __name__, path]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with Listener(path, backlog=n) as listener:
            self._process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL)
            connections = [listener.accept() for _ in range(n)]
        # The highest process is rank 0 and so on: numbers there say nothing about ranks here.
        self._connections = sorted(connections, key=lambda connection: -int(connection.recv()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        try:
            assert self._process.wait(_END_S) == 0, "the processes did not end in order"
        finally:
            self._process.kill()
            self._folder.cleanup()

    def open(self, payload_format: PayloadFormat, with_helper: bool) -> list["MpiEnd"]:
        """The ends of a new allreduce, by rank."""
        for rank, connection in enumerate(self._connections):
            connection.send(("open", (rank, payload_format, with_helper)))
        for connection in self._connections:
            _answer(connection)
        return [MpiEnd(connection) for connection in self._connections]


class MpiEnd:
    """Satisfies ``runtime.protocols.Allreduce`` by what its process does. One thread at a time uses it."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._outs: dict[int, Float32Array | None] = {}

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        self._outs[step.part] = out
        shape = None if out is None else out.shape
        self._connection.send(("start", (step, partial, shape, partial is out)))
        _answer(self._connection)

    def finish(self, step: SumStep) -> None:
        out = self._outs.pop(step.part)
        self._connection.send(("finish", (step,)))
        result = _answer(self._connection)
        if out is not None:
            out[:] = result

    def native(self, flow: Flow, n_values: int) -> NativeSum | None:
        return None


def _answer(connection: "Connection[Any, Any]") -> Any:
    result = connection.recv()
    if isinstance(result, BaseException):
        raise result
    return result


class _Rank:
    """What a process does for its end."""

    def __init__(self) -> None:
        self._sums: Sums | None = None
        self._outs: dict[int, Float32Array | None] = {}

    def open(self, rank: int, payload_format: PayloadFormat, with_helper: bool) -> None:
        mesh = Mesh(rank, {}, 1)
        scale = Scale(payload_format, MAX_VALUES, n_parts=2, arithmetic=make_arithmetic(None, with_helper))
        algorithm = Mpi(mesh, scale)
        self._sums = Sums(mesh, algorithm)
        self._sums.use_for_few(algorithm, MAX_VALUES)

    def start(
        self, step: SumStep, partial: Float32Array | None, shape: Sequence[int] | None, is_in_place: bool
    ) -> None:
        assert self._sums is not None
        out = None if shape is None else partial if is_in_place else np.full(shape, np.nan, np.float32)
        self._outs[step.part] = out
        self._sums.start(step, partial, out)
        if partial is not None and partial is not out:
            partial[:] = np.nan  # it may change now

    def finish(self, step: SumStep) -> Float32Array | None:
        assert self._sums is not None
        self._sums.finish(step)
        return self._outs.pop(step.part)


def _work(path: str) -> NoReturn:
    world, rank = MpiWorld.begin(), _Rank()
    with Client(path) as connection:
        connection.send(world.rank)
        while True:
            try:
                name, arguments = connection.recv()
            except EOFError:
                sys.exit()
            try:
                result = getattr(rank, name)(*arguments)
            except Exception as error:
                result = error
            connection.send(result)


if __name__ == "__main__":
    _work(sys.argv[1])
