"""Every algorithm against the conformance suite: in C over TLS, and in Python over plain socket pairs, with a thread
that carries large sums through."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS, ALL_ALGORITHMS
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.runtime.protocols import Allreduce
from tpi.testing.allreduce_suite import ARITHMETIC, MAX_VALUES, N_EMBD, AllreduceSuite
from tpi.testing.meshes import TlsPairs, open_sums, socket_pair

MOST_TLS_RANKS = 4
"""More have so many pairs that handshakes would take most of the time; they are linked without encryption."""


def test_every_algorithm_declares_its_arithmetic() -> None:
    assert ALL_ALGORITHMS.keys() == ARITHMETIC.keys()


class _Suite(AllreduceSuite):
    pairs: TlsPairs | None = None
    max_few_values: int | None = None
    with_helper = True

    @pytest.fixture(params=ALGORITHMS, autouse=True)
    def _choose(self, request: pytest.FixtureRequest) -> None:
        self.algorithm = request.param

    @contextmanager
    def cluster(self, n_ranks: int, payload_format: PayloadFormat) -> Iterator[list[Allreduce]]:
        scale = Scale(payload_format, MAX_VALUES, n_parts=2)
        make = ALGORITHMS[self.algorithm]
        connect = socket_pair if self.pairs is None or n_ranks > MOST_TLS_RANKS else self.pairs.connect
        with open_sums(n_ranks, make, scale, connect, self.max_few_values, self.with_helper) as shared:
            yield list(shared.ends)


class TestOverTls(_Suite):
    """In C, where that can be had."""

    @pytest.fixture(autouse=True)
    def _keep_pairs(self, tls_pairs: TlsPairs) -> None:
        self.pairs = tls_pairs


class TestWithAThread(_Suite):
    """Sums of more than eight tokens are carried through by a thread of their own; all in Python."""

    max_few_values = 8 * N_EMBD
    with_helper = False
