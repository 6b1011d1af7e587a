"""``mpiexec -n N tpi run``: the processes that ``mpiexec`` has started become one cluster. Main thread.

Process 0 is the master, the others are workers: it tells them the join key by MPI. Keys and certificates last as long
as the processes. Control links, slices, passes and logits go over the usual links; only sums go by MPI.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

from tpi.cli.display import Display
from tpi.cli.environment import find_mpi_place
from tpi.cli.keyfolder import open_key_folder
from tpi.cli.options import refuse_mpi
from tpi.cli.session import open_served
from tpi.cli.talk import Manner, Talk
from tpi.cluster.allreduce.mpi import Mpi
from tpi.cluster.allreduce.mpiworld import MpiWorld
from tpi.cluster.master import Master
from tpi.cluster.worker import run_worker
from tpi.config import Folders, MasterSettings, Resources, WorkerSettings
from tpi.errors import Dismissed, LinkError, UsageError
from tpi.runtime.ggml.probe import probe_kernels

_WAIT_S = 120.0
_NO_CLUSTER_S = 2.0
_ALL_ADDRESSES, _THIS_MACHINE = "0.0.0.0", "127.0.0.1"


class MpiRun:
    """What this process is among ``n_processes`` that were started together. A context manager: if the master fails,
    the others do not wait for it."""

    def __init__(self, n_processes: int) -> None:
        """Begins MPI.

        Raises:
            UsageError: ``mpi4py`` is missing, or belongs to another MPI than ``mpiexec`` does.
        """
        self.n_processes = n_processes
        self._world = MpiWorld.begin()
        if self._world.size != n_processes:
            raise UsageError(
                f"mpiexec has started {n_processes} processes, and mpi4py sees {self._world.size}: it has another MPI "
                "than mpiexec has; use the mpiexec of the environment that tpi is in"
            )
        self.n_here = self._world.n_here()
        """Processes on this machine."""
        self._is_shared = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_master and not self._is_shared:
            with contextlib.suppress(LinkError):
                self._world.share("", _NO_CLUSTER_S)

    @property
    def is_master(self) -> bool:
        return self._world.rank == 0

    @property
    def name(self) -> str:
        """What this process's device is called."""
        return f"mpi-{self._world.rank}"

    @contextlib.contextmanager
    def open(self, settings: MasterSettings, manner: Manner, display: Display) -> Iterator[Talk]:
        """The master's end: a cluster of all processes. The settings' addresses, allreduce and name are filled in.

        Raises:
            TpiError: whatever goes wrong, at a worker or here.
        """
        with ExitStack() as stack:
            state = stack.enter_context(open_key_folder())
            settings = dataclasses.replace(
                settings,
                folders=Folders(state, settings.folders.shards, settings.folders.cache),
                bind=_THIS_MACHINE if self.n_here == self.n_processes else _ALL_ADDRESSES,
                port=0,
                wait_s=_WAIT_S,
                allreduce=settings.allreduce or Mpi.name,
                name=self.name,
            )
            yield stack.enter_context(open_served(settings, manner, display, self._announce))

    def work(self, folders: Folders, resources: Resources) -> None:
        """A worker's end; returns when the master has ended the session, which tells why if there is a reason.

        Raises:
            TpiError: whatever goes wrong here.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all: it is for the master, who says goodbye
        key = self._world.share(None)
        if not key:
            return
        with open_key_folder() as state, contextlib.suppress(Dismissed):
            probe_kernels(folders.cache).require(())
            own = Folders(state, folders.shards, folders.cache)
            run_worker(WorkerSettings(key, own, resources, name=self.name), lambda event: None)

    def _announce(self, master: Master) -> None:
        self._is_shared = True
        self._world.share(master.join_key)


@contextlib.contextmanager
def begin_mpi(local_devices: int, allreduce: str | None) -> Iterator[MpiRun | None]:
    """MPI, if ``mpiexec`` has started this process with others.

    Raises:
        UsageError: that does not go with ``local_devices`` or ``allreduce``; see ``MpiRun``, too.
    """
    place = find_mpi_place()
    if place is None:
        refuse_mpi(allreduce)
        yield None
        return
    if local_devices > 1:
        raise UsageError(
            f"--local-devices {local_devices}: mpiexec has started {place.n} processes, which are the devices: leave "
            "it out, or run without mpiexec"
        )
    with MpiRun(place.n) as run:
        yield run
