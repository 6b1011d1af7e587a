"""The processes that ``mpiexec`` has started, and bytes between them. The only place that knows ``mpi4py``.

Knows no numbers (``mpi``). The main thread begins MPI and ends it (``MpiWorld.begin``); one thread at a time calls it.
It has no time limits and cancels nothing: who waits here looks up again and again whether there is still a reason to,
and what is given up on the way stays in memory, as MPI may still write to it.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tpi.errors import LinkError, LinkTimeoutError, UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

MAX_SHARED_BYTES = 8192
_BEGIN_LIMIT_S, _END_LIMIT_S = 60, 5
"""For all processes to begin, and to end, once one has; whole seconds."""
_QUICK_LOOKS = 1000
"""So often at once, giving way to others on the same core: about a millisecond. Then with pauses."""
_PAUSE_S = 20e-6
_LOOK_S = 0.01
_LEAVE_FIRST_S, _LEAVE_S = 0.5, 2.0

Bytes = npt.NDArray[np.uint8]
Check = Callable[[], None]
"""Raises why there is nothing to wait for any more."""


class Running:
    """An exchange under way. A context manager: whatever ends it, the memory lives until MPI has done with it."""

    def __init__(self, request: "MPI.Request") -> None:
        self._request = request

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._request:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._request))

    def wait(self, check: Check) -> None:
        """Blocks until all has come and left; raises what ``check`` raises."""
        n_looks = 0
        while not self._request.Test():
            check()
            n_looks += 1
            if n_looks > _QUICK_LOOKS:
                time.sleep(_PAUSE_S)
            elif hasattr(os, "sched_yield"):
                os.sched_yield()


class MpiGroup:
    """Some ranks, ascending, that exchange bytes; all of them begin the same exchanges in the same order. MPI keeps it
    until the process ends."""

    def __init__(self, communicator: "MPI.Intracomm") -> None:
        self._communicator = communicator

    def gather(self, memory: Bytes, counts: Sequence[int], places: Sequence[int]) -> Running:
        """Everybody gets everybody's bytes: ``counts[i]`` of them lie at ``places[i]`` on the i-th rank, and come to
        the same place on all others. MPI's allgather."""
        mpi = _load()
        return Running(self._communicator.Iallgatherv(mpi.IN_PLACE, [memory, counts, places, mpi.BYTE]))

    def swap(
        self,
        sent: tuple[Bytes, Sequence[int], Sequence[int]],
        received: tuple[Bytes, Sequence[int], Sequence[int]],
    ) -> Running:
        """Everybody sends everybody else's bytes: memory, counts and places by rank. MPI's alltoall."""
        mpi = _load()
        return Running(self._communicator.Ialltoallv([*sent, mpi.BYTE], [*received, mpi.BYTE]))


class MpiRanks:
    """Which process has which rank of an epoch."""

    def __init__(self, communicator: "MPI.Intracomm", processes: dict[int, int], check: Check) -> None:
        self._communicator, self._processes, self._check = communicator, processes, check

    def group(self, ranks: Sequence[int], part: int) -> MpiGroup:
        """A group of ``ranks``, for sums of ``part``; all of them ask for it at the same point of their work. Blocks
        until they have; raises what ``check`` raises.

        MPI can only block here, so a thread does it, which is left to itself if there is no reason to wait any more.
        Then MPI cannot be ended, and this process leaves without.
        """
        everybody = self._communicator.Get_group()
        chosen = everybody.Incl([self._processes[rank] for rank in ranks])
        made: list[MPI.Intracomm] = []
        thread = threading.Thread(
            target=lambda: made.append(self._communicator.Create_group(chosen, part)), name="tpi-mpi", daemon=True
        )
        thread.start()
        try:
            while thread.is_alive():
                self._check()
                thread.join(_LOOK_S)
        except BaseException:
            atexit.unregister(_finalize)
            atexit.register(_leave, self._communicator.Get_rank() == 0)
            raise
        if not made:
            raise LinkError("MPI cannot make a group of the processes that add up together")
        return MpiGroup(made[0])


class MpiWorld:
    """All processes of the ``mpiexec``; ``rank`` is this one's number there, which need not be its rank in a plan."""

    def __init__(self) -> None:
        """Raises:
        UsageError: ``mpi4py`` or an MPI for it is missing.
        """
        self._world = _load().COMM_WORLD
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()

    def n_here(self) -> int:
        """How many of the processes are on this machine. All call it at once; blocks until they have."""
        here = self._world.Split_type(_load().COMM_TYPE_SHARED)
        n: int = here.Get_size()
        here.Free()
        return n

    def share(self, text: str | None, limit_s: float | None = None) -> str:
        """The text of process 0, which alone gives one. Blocks the others until it has.

        Raises:
            LinkError: it took more than ``limit_s``.
        """
        deadline_s = None if limit_s is None else time.monotonic() + limit_s

        def check() -> None:
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise LinkTimeoutError(f"other processes have not answered within {limit_s:g} s")

        memory = np.zeros(MAX_SHARED_BYTES, np.uint8)
        if text is not None:
            content = text.encode()
            memory[: len(content)] = np.frombuffer(content, np.uint8)
        with Running(self._world.Ibcast(memory, 0)) as running:
            running.wait(check)
        return memory.tobytes().rstrip(b"\0").decode()

    def ranks(self, rank: int, check: Check) -> MpiRanks:
        """Who is who, if this process has ``rank`` in the plan. All call it at once; blocks until they have.

        Raises:
            LinkError: the ranks of the plan are not the processes of one ``mpiexec``; and what ``check`` raises.
        """
        found = np.empty(self.size, np.int32)
        with Running(self._world.Iallgather(np.array([rank], np.int32), found)) as running:
            running.wait(check)
        processes = {int(of): process for process, of in enumerate(found)}
        if sorted(processes) != list(range(self.size)):
            raise LinkError("sums by MPI need all devices to be processes of one mpiexec: choose another allreduce")
        return MpiRanks(self._world, processes, check)

    @classmethod
    def begin(cls) -> Self:
        """The world, with MPI begun; when this process ends, it waits for the others to end, too, as MPI demands. But
        not for ever: then a signal ends it, and so ``mpiexec`` all others. Raises as the constructor."""
        with _limited(_BEGIN_LIMIT_S):
            world = cls()
        atexit.register(_finalize)
        return world


def _leave(is_first: bool) -> None:
    """Ends the process without MPI's end, as an error, whereupon ``mpiexec`` ends all; the first one, which tells why,
    before the others, but when these have had time to remove their keys."""
    time.sleep(_LEAVE_FIRST_S if is_first else _LEAVE_S)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _finalize() -> None:
    with _limited(_END_LIMIT_S):
        _load().Finalize()


@contextlib.contextmanager
def _limited(limit_s: int) -> Iterator[None]:
    """Ends the process if what it does takes longer, even inside MPI. Main thread."""
    if not hasattr(signal, "alarm"):
        yield
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)


def _load() -> Any:
    """``mpi4py.MPI``, whose import begins MPI.

    Raises:
        UsageError: there is none.
    """
    try:
        import mpi4py  # noqa: PLC0415 - an extra, and its library begins MPI

        mpi4py.rc.finalize = False
        mpi4py.rc.thread_level = "serialized"
        from mpi4py import MPI  # noqa: PLC0415

        return MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"mpi4py or its MPI is missing ({reason}): pip install 'tpi-llm[mpi]', for every process"
        ) from None
