"""The allreduce whose bytes MPI carries, against the conformance suite: real processes of ``mpiexec``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.unit.cluster.allreduce.mpi_processes import MpiProcesses, find_mpiexec
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.runtime.protocols import Allreduce
from tpi.testing.allreduce_suite import AllreduceSuite

pytestmark = pytest.mark.skipif(find_mpiexec() is None, reason="there is no mpiexec here")


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[int, MpiProcesses]]:
    """Processes that have been started, by how many they are."""
    known: dict[int, MpiProcesses] = {}
    with ExitStack() as stack:
        yield known
        for world in known.values():
            stack.enter_context(world)


class TestMpi(AllreduceSuite):
    """In C, where that can be had."""

    algorithm = "mpi"
    with_helper = True

    @pytest.fixture(autouse=True)
    def _keep_worlds(self, worlds: dict[int, MpiProcesses]) -> None:
        self.worlds = worlds

    @contextmanager
    def cluster(self, n_ranks: int, payload_format: PayloadFormat) -> Iterator[list[Allreduce]]:
        if n_ranks == 1:
            yield [Sums(None, None)]
            return
        if n_ranks not in self.worlds:
            mpiexec = find_mpiexec()
            assert mpiexec is not None
            self.worlds[n_ranks] = MpiProcesses(mpiexec, n_ranks)
        yield list(self.worlds[n_ranks].open(payload_format, self.with_helper))
