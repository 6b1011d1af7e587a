"""The allreduce whose bytes MPI carries, against the conformance suite: real processes of ``mpiexec``."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from tests.unit.cluster.allreduce.mpi_processes import MpiProcesses, find_mpiexec
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.runtime.protocols import Allreduce, SumStep
from tpi.testing.allreduce_suite import MAX_TOKENS, AllreduceSuite, Format, flow_of, random_partials

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

    @Format
    @pytest.mark.parametrize("n_ranks", [2, 4])
    def test_large_sums_whoever_contributes_and_whoever_receives(
        self, n_ranks: int, payload_format: PayloadFormat
    ) -> None:
        """Cut into slices; in every other one, some contributions or totals are too large for the format."""
        random = np.random.default_rng(n_ranks)
        everybody = range(n_ranks)
        cases: list[tuple[Sequence[int], Sequence[int]]] = [
            (everybody, everybody),
            ([0, 1], everybody),
            (everybody, [n_ranks - 1]),
            (everybody, [0, n_ranks - 1]),
            (range(n_ranks - 1), range(1, n_ranks)),
        ]
        with self.cluster(n_ranks, payload_format) as ends:
            for block, (contributors, receivers) in enumerate(2 * cases):
                flow = flow_of(contributors, receivers, block, is_handed_over=block >= len(cases))
                partials = random_partials(random, flow.contributors, MAX_TOKENS)
                if block % 2:
                    partials[flow.contributors[0]][0, 0] = 1e9
                    partials[flow.contributors[-1]][MAX_TOKENS - 1] = 60000
                self.check(ends, SumStep(4, flow), partials, payload_format)
